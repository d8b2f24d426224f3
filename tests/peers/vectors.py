"""Nearest neighbours by tarn and by what a user would pick instead, over the same vectors, on the same cores, in one run:
each pair alternates, and medians are printed with their ratio.

    python tests/peers/clip_like.py FOLDER 1000000 && tarn ingest POOL FOLDER && tarn index POOL create b32_img
    python tests/peers/vectors.py POOL FOLDER path/to/tarn path/to/search [WHAT...]

Needs numpy, faiss-cpu, hnswlib and lancedb. WHAT is any of: copy exact join index batch centroid kmeans hnsw."""

import glob
import os
import statistics
import subprocess
import sys
import time

import numpy as np

POOL, FOLDER, TARN, SEARCH = sys.argv[1:5]
WHAT = sys.argv[5:] or ["copy", "exact", "join", "index", "batch", "centroid", "kmeans", "hnsw"]
CORES = len(os.sched_getaffinity(0))
K = 10


def load(name):
    return np.concatenate([np.load(f)[name] for f in sorted(glob.glob(f"{FOLDER}/*.npz"))])


def queries(n, seed):
    """Images of the pool with some noise: near to what is there, and not the same."""
    rng = np.random.default_rng(seed)
    x = IMAGES[rng.choice(len(IMAGES), n, replace=False)].astype(np.float32)
    x += 0.01 * rng.standard_normal(x.shape, dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def add_set(name, vectors):
    np.save(f"/tmp/{name}.npy", vectors)
    subprocess.run([TARN, "vectors", POOL, "drop", name], capture_output=True)
    subprocess.run([TARN, "vectors", POOL, "add", name, f"/tmp/{name}.npy"], check=True, capture_output=True)


def search(set_name, what, nprobes=64, refine=4, rounds=3):
    args = [SEARCH, POOL, "b32_img", set_name, what, str(K), str(nprobes), str(refine), str(rounds)]
    lines = subprocess.run(args, check=True, capture_output=True, text=True).stdout.splitlines()
    # The first round opens and reads what the others find in memory.
    times = [float(x) for x in lines[:-1]]
    return statistics.median(times[1:] or times), lines[-1].split()


def timed(work, rounds=3):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def versus(what, tarn, peer, name, n=1):
    unit = 1000 / n
    print(f"{what}: tarn {tarn * unit:.3f} ms, {name} {peer * unit:.3f} ms, tarn takes {tarn / peer:.2f} of its time", flush=True)


def recall(found, truth):
    found = [set(found[i * K:(i + 1) * K]) for i in range(len(truth))]
    return np.mean([len(f & set(t)) / K for f, t in zip(found, truth)])


def uid_of(row):
    return f"{int(row) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"


os.environ["RUST_LOG"] = "error"
os.environ["LANCE_LOG"] = "error"  # LanceDB warns at each query

import faiss

faiss.omp_set_num_threads(CORES)
IMAGES = load("b32_img")
N, DIM = IMAGES.shape
print(f"{N} vectors of {DIM}, {CORES} cores, faiss {faiss.__version__}")

if "copy" in WHAT:
    a, b = np.ones(1 << 27, np.float32), np.empty(1 << 27, np.float32)
    times = [timed(lambda: np.copyto(b, a), 1)[0] for _ in range(5)]
    print(f"a copy on one core reads {a.nbytes / statistics.median(times) / 1e9:.1f} GB/s and writes as much")
    del a, b

few, many = queries(20, 1), queries(1000, 2)
add_set("peer_few", few)
add_set("peer_many", many)
X = IMAGES.astype(np.float32)
X /= np.linalg.norm(X, axis=1, keepdims=True)

if "exact" in WHAT:
    flat16 = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    flat16.add(X)
    tarn, peer = [], []
    for _ in range(3):
        tarn.append(search("peer_few", "exact-single")[0])
        peer.append(timed(lambda: [flat16.search(q[None], K) for q in few], 1)[0])
    t, p = statistics.median(tarn), statistics.median(peer)
    versus("exact search, one query", t, p, "faiss flat float16", len(few))
    print(f"  tarn reads {IMAGES.nbytes * len(few) / t / 1e9:.1f} GB/s")
    del flat16

flat = faiss.IndexFlatIP(DIM)
flat.add(X)
truth = [[uid_of(r) for r in row] for row in flat.search(many, K)[1]]

if "join" in WHAT:
    tarn, peer = [], []
    for _ in range(3):
        t, found = search("peer_many", "exact-batch", rounds=1)
        tarn.append(t)
        peer.append(timed(lambda: flat.search(many, K), 1)[0])
    versus("kNN join of 1,000 queries, exact", statistics.median(tarn), statistics.median(peer), "faiss flat, batched", 1000)
    print(f"  recall of tarn {recall(found, truth):.4f}")

if "index" in WHAT:
    import lancedb

    table = lancedb.connect(POOL).open_table("pool")

    def ask(nprobes, refine):
        found = []
        for q in many[:200]:
            rows = table.search(q, vector_column_name="b32_img").distance_type("cosine").nprobes(nprobes).refine_factor(refine)
            found += [u.hex() for u in rows.limit(K).select(["uid"]).to_arrow()["uid"].to_pylist()]
        return found

    add_set("peer_200", many[:200])
    for nprobes, refine in ((32, 4), (64, 4), (128, 4)):
        ask(nprobes, refine)
        tarn, peer = [], []
        for _ in range(3):
            t, found = search("peer_200", "single", nprobes, refine)
            tarn.append(t)
            p, others = timed(lambda: ask(nprobes, refine), 1)
            peer.append(p)
        t, p = statistics.median(tarn), statistics.median(peer)
        versus(f"index, nprobes {nprobes}, refine {refine}, one query", t, p, f"LanceDB {lancedb.__version__} on the same index", 200)
        print(f"  recall {recall(found, truth[:200]):.4f}, LanceDB {recall(others, truth[:200]):.4f}")

if "batch" in WHAT:
    start = time.perf_counter()
    ivf = faiss.index_factory(DIM, "IVF1024,PQ64x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
    ivf.train(X[np.random.default_rng(0).choice(N, min(N, 262144), replace=False)])
    ivf.add(X)
    print(f"faiss builds IVF1024,PQ64x4fs,RFlat in {time.perf_counter() - start:.1f} s; time tarn index POOL create b32_img beside it")
    for nprobe, k_factor in ((32, 16), (64, 64), (64, 128), (128, 256)):
        ivf.k_factor = k_factor
        faiss.extract_index_ivf(ivf.base_index).nprobe = nprobe
        p, found = timed(lambda: ivf.search(many, K)[1])
        found = [uid_of(r) for row in found for r in row]
        print(f"batch of 1,000: faiss nprobe {nprobe}, {k_factor}k re-ranked: {p:.3f} ms a query, recall {recall(found, truth):.4f}")
    for nprobes, refine in ((16, 4), (32, 4), (64, 4)):
        t, found = search("peer_many", "batch", nprobes, refine)
        print(f"batch of 1,000: tarn nprobes {nprobes}, refine {refine}: {t:.3f} ms a query, recall {recall(found, truth):.4f}")
    del ivf

if "centroid" in WHAT:
    cents = queries(100_000, 3)
    add_set("peer_cents", cents)
    index = faiss.IndexFlatIP(DIM)
    index.add(cents)
    tarn, peer = [], []
    for _ in range(3):
        tarn.append(search("peer_cents", "centroid", rounds=2)[0])
        peer.append(timed(lambda: index.search(X[:20_000], 1), 1)[0])
    versus("nearest_centroid of 100,000, 20,000 rows", statistics.median(tarn), statistics.median(peer), "faiss flat", 20_000)
    del cents, index

if "kmeans" in WHAT:
    k, n = 1000, 100_000
    start = time.perf_counter()
    train = faiss.Kmeans(DIM, k, niter=20, spherical=True, seed=0, max_points_per_centroid=n)
    train.train(X[:n])
    peer = time.perf_counter() - start
    subprocess.run([TARN, "vectors", POOL, "drop", "peer_kmeans"], capture_output=True)
    start = time.perf_counter()
    args = ["kmeans", "peer_kmeans", "--column", "b32_img", "-k", str(k), "--iterations", "20", "--samples", str(n)]
    said = subprocess.run([TARN, "vectors", POOL, *args], check=True, capture_output=True, text=True).stderr
    tarn = time.perf_counter() - start
    versus(f"k-means of {k} over {n}, 20 iterations", tarn, peer, "faiss spherical")
    print(f"  mean cosine: faiss {train.obj[-1] / n:.6f}; {said.strip().splitlines()[-1]}")

if "hnsw" in WHAT:
    import hnswlib

    for n in (1_000, 10_000, 100_000):
        vectors = X[:n]
        index = hnswlib.Index(space="ip", dim=DIM)
        start = time.perf_counter()
        index.init_index(max_elements=n, ef_construction=200, M=24)
        index.set_num_threads(CORES)
        index.add_items(vectors)
        built = time.perf_counter() - start
        index.set_num_threads(1)
        best = [[int(i) for i in row] for row in np.argsort(-(many[:500] @ vectors.T), axis=1)[:, :K]]
        add_set("peer_graph", vectors)
        for ef in (32, 128):
            index.set_ef(ef)
            p, found = timed(lambda: [index.knn_query(q, k=K)[0][0] for q in many[:500]])
            right = np.mean([len(set(map(int, f)) & set(b)) / K for f, b in zip(found, best)])
            print(f"graph over {n}, ef {ef}: hnswlib {p / 500 * 1e3:.3f} ms a query, recall {right:.4f}, built in {built:.1f} s")
        start = time.perf_counter()
        out = subprocess.run([SEARCH, POOL, "-", "peer_graph", "graph", str(K), "0", "0", "3"], check=True, capture_output=True, text=True)
        print(out.stdout.strip())
