"""Opens a pool with pylance: columns, rows, images, a vector query, and the same through DuckDB.

    python tests/peers/read_pool.py POOL [COLUMN]
"""
import sys

import lance
import numpy as np

root = sys.argv[1]
column = sys.argv[2] if len(sys.argv) > 2 else "l14_img"
pool, images = lance.dataset(f"{root}/pool.lance"), lance.dataset(f"{root}/images.lance")
print(f"{pool.count_rows()} samples, {images.count_rows()} images")
print(pool.schema.names)

rows = pool.take([0, 2], columns=["uid", "text"])
print("rows 0 and 2:", [(row["uid"].hex(), row["text"]) for row in rows.to_pylist()])

blob = images.take_blobs("image", indices=[0])[0]
print("first image:", blob.readall()[:3] == b"\xff\xd8\xff" and "a JPEG")

table = pool.to_table(columns=["uid", column], filter=f"{column} IS NOT NULL")
query = np.asarray(table[column][3].as_py(), np.float16)
found = pool.to_table(columns=["uid"], nearest={"column": column, "q": query, "k": 3, "metric": "cosine"})
distances = [round(d, 4) for d in found["_distance"].to_pylist()]
print("nearest of itself:", table["uid"][3].as_py() in found["uid"].to_pylist() and abs(distances[0]) < 1e-3, distances)

try:
    import duckdb

    captions = pool.to_table(columns=["text"])
    print("DuckDB:", duckdb.sql("SELECT count(*), avg(length(text)) FROM captions").fetchall())
except ImportError:
    print("DuckDB: not installed")
