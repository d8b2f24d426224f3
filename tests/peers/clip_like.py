"""Makes a folder of metadata and embeddings with the structure of CLIP's: clusters of very different sizes in a space of
some 64 intrinsic dimensions, a direction that all images share, another that all texts share (the gap between them), and
texts near their images by no more than CLIP's are (cosines of about 0.25 to 0.35).

    python clip_like.py FOLDER ROWS [DIM]

The same for the same arguments."""

import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FILE_ROWS = 100_000
LATENT = 64


def batch(rng, n, dim, clusters, sizes, decode, image_mean, text_mean):
    cluster = rng.choice(len(clusters), size=n, p=sizes)
    latent = clusters[cluster] + 0.45 * rng.standard_normal((n, LATENT), dtype=np.float32)
    said = latent + 0.8 * rng.standard_normal((n, LATENT), dtype=np.float32)
    out = []
    for z, mean in ((latent, image_mean), (said, text_mean)):
        x = z @ decode
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        x = x * 0.75 + mean + 0.01 * rng.standard_normal((n, dim), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        out.append(x.astype(np.float16))
    return out


def world(dim):
    rng = np.random.default_rng(1)
    clusters = rng.standard_normal((3000, LATENT), dtype=np.float32)
    sizes = 1 / np.arange(1, 3001) ** 0.7
    decode = rng.standard_normal((LATENT, dim), dtype=np.float32)
    # Some directions carry more than others.
    decode *= (np.arange(1, LATENT + 1, dtype=np.float32) ** -0.25)[:, None]
    means = [rng.standard_normal(dim).astype(np.float32) for _ in range(2)]
    image, text = (m / np.linalg.norm(m) * 0.65 for m in means)
    return clusters, sizes / sizes.sum(), decode, image, text


def main():
    folder, rows, dim = sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or ["512"])[0])
    names = {512: ("b32_img", "b32_txt"), 768: ("l14_img", "l14_txt")}[dim]
    os.makedirs(folder, exist_ok=True)
    of = world(dim)
    for i, start in enumerate(range(0, rows, FILE_ROWS)):
        n = min(FILE_ROWS, rows - start)
        rng = np.random.default_rng([7, i])
        image, text = batch(rng, n, dim, *of)
        uids = [f"{(start + j) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}" for j in range(n)]
        score = np.einsum("ij,ij->i", image.astype(np.float32), text.astype(np.float32))
        table = pa.table({
            "uid": uids,
            "url": [f"http://images.example/{start + j}.jpg" for j in range(n)],
            "text": [f"caption {start + j} of cluster" for j in range(n)],
            "original_width": np.full(n, 640, dtype=np.int64),
            "original_height": np.full(n, 480, dtype=np.int64),
            "clip_b32_similarity_score": score,
            "sha256": [f"{start + j:064x}" for j in range(n)],
        })
        pq.write_table(table, f"{folder}/{i:08}.parquet")
        np.savez(f"{folder}/{i:08}.npz", **dict(zip(names, (image, text))))


main()
