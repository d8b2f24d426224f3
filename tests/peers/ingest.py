"""Metadata and embeddings into Lance: tarn beside a Python loop of pyarrow, numpy and pylance, on the same files.

    python tests/peers/ingest.py TARN SOURCE [ROUNDS]

SOURCE is a folder of CommonPool's layout (`cargo run --release --example generate`). The two alternate; medians and
their ratio are printed. The Python side checks nothing. Metadata: a loop that reads each parquet file and appends it,
and, tuned, one scan of all files with all cores that is written as one stream. Embeddings: the arrays of each .npz as
fixed-size lists, written as one stream.
"""
import glob
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import lance
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

tarn, source = sys.argv[1], sys.argv[2]
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
work = tempfile.mkdtemp(dir=os.environ.get("TARN_BENCH_DIR"))
parquet, npz = sorted(glob.glob(f"{source}/*.parquet")), sorted(glob.glob(f"{source}/*.npz"))


def timed(action):
    os.sync()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def tarn_ingest(files):
    subprocess.run([tarn, "ingest", f"{work}/pool", *files], check=True, stderr=subprocess.DEVNULL)


def metadata_by_loop():
    for path in parquet:
        lance.write_dataset(pq.read_table(path), f"{work}/metadata.lance", mode="append")


def metadata_by_stream():
    scanner = ds.dataset(parquet).scanner(batch_size=8192)
    lance.write_dataset(scanner.to_reader(), f"{work}/metadata.lance", max_rows_per_file=1 << 20)


def embeddings_by_python():
    def batches():
        for path in npz:
            with np.load(path) as arrays:
                columns = {
                    name: pa.FixedSizeListArray.from_arrays(pa.array(arrays[name].reshape(-1)), arrays[name].shape[1])
                    for name in arrays.files
                }
            yield from pa.Table.from_pydict(columns).to_batches(4096)

    with np.load(npz[0]) as arrays:
        schema = pa.schema([(name, pa.list_(pa.float16(), arrays[name].shape[1])) for name in arrays.files])
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    lance.write_dataset(reader, f"{work}/embeddings.lance", max_rows_per_file=1 << 20)


def compare(name, ours, **theirs):
    times = {"tarn": [], **{peer: [] for peer in theirs}}
    for _ in range(rounds):
        times["tarn"].append(timed(ours))
        for peer, action in theirs.items():
            for path in glob.glob(f"{work}/*.lance"):
                shutil.rmtree(path)
            times[peer].append(timed(action))
    median = {who: statistics.median(values) for who, values in times.items()}
    for peer in theirs:
        ratio = median[peer] / median["tarn"]
        print(f"{name}: tarn {median['tarn']:.2f} s, {peer} {median[peer]:.2f} s, {ratio:.2f} times as fast", flush=True)


def fresh_metadata():
    shutil.rmtree(f"{work}/pool", ignore_errors=True)
    tarn_ingest(parquet)


def fresh_embeddings():
    # The metadata is there already: the vectors join its rows.
    shutil.rmtree(f"{work}/pool", ignore_errors=True)
    shutil.copytree(f"{work}/prepared", f"{work}/pool")
    os.sync()
    tarn_ingest(npz)


compare("metadata", fresh_metadata, loop=metadata_by_loop, stream=metadata_by_stream)
if npz:
    shutil.rmtree(f"{work}/pool", ignore_errors=True)
    tarn_ingest(parquet)
    os.rename(f"{work}/pool", f"{work}/prepared")
    compare("embeddings", fresh_embeddings, stream=embeddings_by_python)
shutil.rmtree(work)
