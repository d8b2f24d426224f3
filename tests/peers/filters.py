"""Filters: tarn beside what a user would run instead, on the same data, in the same minutes, on the same cores.

    generate META 12800000; tarn ingest POOL META        (tests/examples/generate.rs)
    python tests/peers/filters.py TARN POOL META [REPEATS]

Needs duckdb, numpy, pandas, pyarrow; gcld3 and fasttext where they are installed (and TARN_RESOURCES with a language
model). Each pair runs alternating; printed are medians and their ratio. Peers read parquet from the page cache, as tarn
reads its pool, and start a process each, as tarn does, unless said.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

TARN, POOL, META = sys.argv[1:4]
REPEATS = int(sys.argv[4]) if len(sys.argv) > 4 else 3
CORES = os.cpu_count()
PARQUET = f"read_parquet('{META}/*.parquet')"
SCORE = "clip_l14_similarity_score"


def run(command, **kwargs):
    start = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, **kwargs)
    return time.perf_counter() - start, done.stdout


def pair(name, ours, theirs, peer, goal):
    times = [(ours(), theirs()) for _ in range(REPEATS)]
    a, b = (statistics.median(t[i] for t in times) for i in (0, 1))
    print(f"{name}: tarn {a:.2f} s, {peer} {b:.2f} s, {b / a:.1f} times as fast ({a / b:.2f} of its time; {goal})", flush=True)


def tarn_sql(sql):
    return lambda: run([TARN, "sql", POOL, "-c", sql, "--format", "csv"])[0]


def script(text, *args):
    """A process of its own, which imports only what it needs."""
    return lambda: run([sys.executable, "-c", text, *map(str, args)])[0]


DUCKDB = "import duckdb, sys; c = duckdb.connect(); c.execute(f'SET threads = {sys.argv[1]}'); "
DUCKDB_SQL = DUCKDB + "print(c.execute(sys.argv[2]).fetchall())"

# The threshold, then uids parsed from hex and sorted: in SQL as far as that is faster.
DUCKDB_CLIP_SCORE = (
    DUCKDB
    + """
import numpy as np
table, out = sys.argv[2:4]
n = c.execute(f'SELECT count(*) FROM {table}').fetchone()[0]
t = c.execute(f'SELECT min(s) FROM (SELECT clip_l14_similarity_score s FROM {table} ORDER BY s DESC LIMIT {int(n * 0.3) + 1})').fetchone()[0]
rows = c.execute(f"SELECT ('0x' || uid[1:16])::UBIGINT f0, ('0x' || uid[17:32])::UBIGINT f1 FROM {table} WHERE clip_l14_similarity_score >= {t} ORDER BY f0, f1").fetchnumpy()
uids = np.empty(len(rows['f0']), dtype=[('f0', 'u8'), ('f1', 'u8')])
uids['f0'], uids['f1'] = rows['f0'], rows['f1']
np.save(out, uids)
"""
)

# As DataComp's baselines go about it: one file a task, pandas, uids parsed in Python, all cores.
PANDAS_CLIP_SCORE = """
import glob, sys, multiprocessing
import numpy as np, pandas as pd
meta, out = sys.argv[1:3]
files = sorted(glob.glob(meta + '/*.parquet'))
def scores(path):
    return pd.read_parquet(path, columns=['clip_l14_similarity_score'])['clip_l14_similarity_score'].values
def uids(args):
    path, threshold = args
    frame = pd.read_parquet(path, columns=['uid', 'clip_l14_similarity_score'])
    kept = frame['uid'].values[frame['clip_l14_similarity_score'].values >= threshold]
    return np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in kept], np.dtype('u8,u8'))
with multiprocessing.Pool() as pool:
    all_scores = np.concatenate(pool.map(scores, files))
    threshold = -np.sort(-all_scores)[int(len(all_scores) * 0.3)]
    kept = np.concatenate(pool.map(uids, [(path, threshold) for path in files]))
kept.sort()
np.save(out, kept)
"""


def clip_score(folder):
    ours, duck, pandas = (os.path.join(folder, name) for name in ("tarn.npy", "duckdb.npy", "pandas.npy"))
    tarn = lambda: run([TARN, "filter", POOL, "clip_score", "-o", ours])[0]
    pair("clip_score 30% to a sorted .npy", tarn, script(DUCKDB_CLIP_SCORE, CORES, PARQUET, duck), "DuckDB", "goal: at most 0.25")
    start = time.perf_counter()
    script(PANDAS_CLIP_SCORE, META, pandas)()
    took = time.perf_counter() - start
    print(f"clip_score 30%: DataComp's way, pandas on all cores, once: {took:.1f} s, {took / tarn():.0f} times tarn's time (goal: 30)")
    a, b, c = (np.load(path) for path in (ours, duck, pandas))
    assert (a == b).all() and (a == c).all(), "all three select the same uids"


def queries():
    words = "len(string_split(trim(text), ' '))"  # cheaper than the Unicode white space that word_count knows
    basic = "original_width >= 200 AND original_height >= 200 AND original_width <= 3 * original_height AND original_height <= 3 * original_width"
    both = [
        ("basic_filter without language", f"SELECT count(*) FROM {{}} WHERE {basic} AND char_length(text) > 5 AND {{}} > 2"),
        ("count(*)", "SELECT count(*) FROM {}"),
        ("count of a score range", f"SELECT count(*) FROM {{}} WHERE {SCORE} > 0.25"),
        ("group by width", "SELECT original_width, count(*) AS n FROM {} GROUP BY original_width ORDER BY n DESC, original_width LIMIT 10"),
        ("top 100 by score", f"SELECT uid, {SCORE} FROM {{}} ORDER BY {SCORE} DESC LIMIT 100"),
    ]
    for name, sql in both:
        pair(name, tarn_sql(sql.format("pool", "word_count(text)")), script(DUCKDB_SQL, CORES, sql.format(PARQUET, words)), "DuckDB", "goal: at most 1.2")


def languages():
    import pyarrow.parquet as pq

    files = sorted(f for f in os.listdir(META) if f.endswith(".parquet"))[:20]
    texts = [t.replace("\n", " ") for f in files for t in pq.read_table(os.path.join(META, f), columns=["text"])["text"].to_pylist() if t]
    listed = ", ".join(f"'{META}/{f}'" for f in files)

    def of_file(function):
        # Without process start and reading: the difference to a query that only counts characters.
        sql = " UNION ALL ".join(f"SELECT text FROM '{META}/{f}'" for f in files)
        timed = lambda f: min(tarn_sql(f"SELECT count(*) FROM ({sql}) WHERE {f} = 'en'")() for _ in range(REPEATS))
        return CORES * (timed(f"{function}(text)") - timed("substr(text, 1, 2)"))

    def report(name, ours, theirs):
        print(f"{name}: tarn {len(texts) / ours:,.0f} rows/s a core, {theirs[0]} {len(texts) / theirs[1]:,.0f}: {theirs[1] / ours:.1f} times as fast ({len(listed) and len(texts)} captions; goal: 1)", flush=True)

    try:
        import gcld3

        detector = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)
        start = time.perf_counter()
        for text in texts:
            detector.FindLanguage(text=text)
        report("lang", of_file("lang"), ("gcld3 in a loop", time.perf_counter() - start))
    except ImportError:
        print("lang: gcld3 is not installed")
    resources = os.environ.get("TARN_RESOURCES", "")
    model = next((os.path.join(resources, n) for n in ("lid.176.bin", "lid.176.ftz") if os.path.exists(os.path.join(resources, n))), None)
    try:
        import fasttext

        if model is None:
            return print("lang_fasttext: no language model in TARN_RESOURCES")
        loaded = fasttext.load_model(model)
        start = time.perf_counter()
        loaded.predict(texts)
        report("lang_fasttext", of_file("lang_fasttext"), ("fastText's batch predict", time.perf_counter() - start))
    except ImportError:
        print("lang_fasttext: fasttext is not installed")


def cosine(folder):
    """A generated pool's l14 columns from the page cache, beside DuckDB with the same vectors in memory."""
    import duckdb
    import pyarrow as pa

    n, dim = 100_000, 768
    source, pool = os.path.join(folder, "meta"), os.path.join(folder, "pool")
    run([os.path.join(os.path.dirname(TARN), "examples", "generate"), source, str(n), "--embeddings"])
    run([TARN, "ingest", pool, source])
    ours = lambda: run([TARN, "sql", pool, "-c", "SELECT sum(cosine_similarity(l14_img, l14_txt)) FROM pool"])[0]
    c = duckdb.connect()
    c.execute(f"SET threads = {CORES}")
    c.execute(f"CREATE TABLE vectors (a FLOAT[{dim}], b FLOAT[{dim}])")
    for path in sorted(f for f in os.listdir(source) if f.endswith(".npz")):
        with np.load(os.path.join(source, path)) as arrays:
            of = lambda name: pa.FixedSizeListArray.from_arrays(pa.array(arrays[name].astype(np.float32).ravel()), dim)
            batch = pa.table({"a": of("l14_img"), "b": of("l14_txt")})
        c.execute("INSERT INTO vectors SELECT * FROM batch")

    def theirs():
        start = time.perf_counter()
        c.execute("SELECT sum(array_cosine_similarity(a, b)) FROM vectors").fetchall()
        return time.perf_counter() - start

    pair(f"cosine_similarity of {n:,} pairs of {dim}", ours, theirs, "DuckDB in memory, without process start", "goal: 10 times as fast")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        clip_score(folder)
        queries()
        languages()
        cosine(folder)
