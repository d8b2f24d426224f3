"""Shards in and out: tarn beside Python.

    python tests/peers/shards.py TARN SHARDS [ROUNDS]

SHARDS is a folder of webdataset shards with their members' JSON. In: `tarn ingest` beside pylance writing the same
bytes as blobs, and beside the disk's own speed (dd). Out: `tarn export --to webdataset` of every image beside a loop
over the same shards with `tarfile` that keeps what a set of uids names. All alternate; medians are printed. What goes in is timed until it is on the
disk, what goes out until the program is done, since neither of the two waits for the disk.
"""
import glob
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

import lance
import pyarrow as pa

tarn, source = sys.argv[1], sys.argv[2]
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
work = tempfile.mkdtemp(dir=os.environ.get("TARN_BENCH_DIR"))
shards = sorted(glob.glob(f"{source}/*.tar"))
total = sum(os.path.getsize(path) for path in shards)


def timed(action, *garbage, synced=True):
    for path in garbage:
        shutil.rmtree(f"{work}/{path}", ignore_errors=True)
    os.sync()
    start = time.perf_counter()
    action()
    if synced:
        os.sync()
    return time.perf_counter() - start


def run(*args):
    subprocess.run([tarn, *args], check=True, stderr=subprocess.DEVNULL, cwd=work)


def samples(path):
    with tarfile.open(path) as archive:
        sample = {}
        for member in archive:
            key, _, extension = member.name.partition(".")
            if sample and sample["__key__"] != key:
                yield sample
                sample = {}
            sample["__key__"] = key
            sample[extension] = archive.extractfile(member).read()
        if sample:
            yield sample


def pylance_in():
    def batches():
        for path in shards:
            group = list(samples(path))
            for i in range(0, len(group), 256):
                part = group[i : i + 256]
                uids = pa.array([json.loads(s["json"])["uid"] for s in part])
                yield pa.record_batch([uids, lance.blob_array([s["jpg"] for s in part])], schema=schema)

    schema = pa.schema([pa.field("uid", pa.string()), lance.blob_field("image")])
    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), f"{work}/images.lance", data_storage_version="2.2")


def dd():
    subprocess.run(["dd", "if=/dev/zero", f"of={work}/zeros", "bs=1M", f"count={total >> 20}"], check=True, stderr=subprocess.DEVNULL)


def python_out():
    os.makedirs(f"{work}/out_python", exist_ok=True)
    out, written = None, 0
    for path in shards:
        for sample in samples(path):
            uid = json.loads(sample["json"])["uid"]
            if uid not in uids:
                continue
            if written % 10_000 == 0:
                out and out.close()
                out = tarfile.open(f"{work}/out_python/{written // 10_000:08d}.tar", "w")
            for extension in ("jpg", "json", "txt"):
                info = tarfile.TarInfo(f"{uid}-0.{extension}")
                info.size = len(sample[extension])
                out.addfile(info, io.BytesIO(sample[extension]))
            written += 1
    out.close()


uids = {json.loads(s["json"])["uid"] for path in shards for s in samples(path)}
times = {"tarn in": [], "pylance in": [], "dd": [], "tarn out": [], "python out": []}
for _ in range(rounds):
    times["tarn in"].append(timed(lambda: run("ingest", "pool", *map(os.path.abspath, shards)), "pool"))
    times["pylance in"].append(timed(pylance_in, "images.lance"))
    times["dd"].append(timed(dd))
for _ in range(rounds):
    times["tarn out"].append(timed(lambda: run("export", "pool", "no_filter", "--to", "webdataset", "-o", "out"), "out", "out_python", synced=False))
    times["python out"].append(timed(python_out, "out", "out_python", synced=False))
median = {name: statistics.median(values) for name, values in times.items()}
for name, seconds in median.items():
    print(f"{name}: {seconds:.2f} s, {total / seconds / 1e6:.0f} MB/s")
print(f"in: {median['pylance in'] / median['tarn in']:.2f} times pylance, {median['dd'] / median['tarn in']:.2f} of the disk")
print(f"out: {median['python out'] / median['tarn out']:.2f} times a tarfile loop")
shutil.rmtree(work)
