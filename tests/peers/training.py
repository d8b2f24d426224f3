#!/usr/bin/env python3
"""The trainer beside what would be used instead, on the same cores: open_clip on PyTorch's CPU backend, and a loader of
webdataset, Pillow and torchvision with as many workers as cores.

    pip install torch torchvision open_clip_torch webdataset pillow
    cargo build --release --workspace --examples
    python tests/peers/training.py EXAMPLE POOL SHARDS [step] [encode] [load]

EXAMPLE is target/release/examples/training, POOL a pool with images, SHARDS the folder of the tars that they came from.
Both sides run in turn, three times each; the median of each side's rounds (the first of a run is left out) and their
ratio are printed. Captions have 8 to 31 tokens, which tarn packs and open_clip pads to 77.
"""
import glob
import os
import statistics
import subprocess
import sys

CORES = os.cpu_count()
RUNS = 3

TORCH = r"""
import sys, time, torch, open_clip
what, name, batch, rounds, precision, cores = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6])
torch.set_num_threads(cores)
if name == 'tiny':
    model = open_clip.CLIP(
        embed_dim=64,
        vision_cfg=dict(image_size=64, layers=3, width=96, head_width=32, patch_size=16),
        text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=2),
    )
    size = 64
else:
    model, size = open_clip.create_model(name), 224
pixels = torch.randn(batch, 3, size, size)
tokens = torch.zeros(batch, 77, dtype=torch.long)
for i in range(batch):
    words = 6 + i * 5 % 24
    tokens[i, 0], tokens[i, 1 + words] = 49406, 49407
    tokens[i, 1:1 + words] = torch.arange(300, 300 + words)
autocast = lambda: torch.autocast('cpu', dtype=torch.bfloat16, enabled=precision == 'bf16')
def timed(work):
    start = time.time()
    work()
    print(batch / (time.time() - start), flush=True)
if what == 'step':
    loss = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True)
    def step():
        optimizer.zero_grad()
        with autocast():
            images, texts, scale = model(pixels, tokens)[:3]
            total = loss(images, texts, scale)
        total.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
    for _ in range(rounds):
        timed(step)
else:
    model.eval()
    with torch.inference_mode(), autocast():
        for _ in range(rounds):
            timed(lambda: model.encode_image(pixels))
            timed(lambda: model.encode_text(tokens))
"""

LOADER = r"""
import glob, sys, time
import webdataset as wds
from torchvision import transforms as T
import open_clip, torch
shards, size, batch, rounds, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
torch.set_num_threads(1)
tokenize = open_clip.get_tokenizer('ViT-B-32')
transform = open_clip.image_transform(size, is_train=True)
urls = sorted(glob.glob(shards + '/*.tar'))
data = wds.WebDataset(urls, resampled=True, shardshuffle=False, nodesplitter=wds.split_by_node, workersplitter=wds.split_by_worker)
data = data.shuffle(1000).decode('pilrgb').rename(image='jpg;png;webp', text='txt')
data = data.map_dict(image=transform, text=lambda text: tokenize(text)[0]).to_tuple('image', 'text').batched(64)
loader = wds.WebLoader(data, batch_size=None, shuffle=False, num_workers=workers, prefetch_factor=4)
batches = iter(loader)
[next(batches) for _ in range(2 * workers)]
for _ in range(rounds):
    start, seen = time.time(), 0
    while seen < batch:
        seen += next(batches)[0].shape[0]
    print(seen / (time.time() - start), flush=True)
"""


def rounds(command):
    out = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(CORES)})
    return [float(line) for line in out.stdout.split()]


def compare(what, tarn, peers, columns=1):
    """Runs all in turn; `columns` figures a round."""
    figures = {name: [[] for _ in range(columns)] for name in ["tarn", *peers]}
    for _ in range(RUNS):
        for name, command in [("tarn", tarn), *peers.items()]:
            for i, figure in enumerate(rounds(command)):
                if i >= columns:
                    figures[name][i % columns].append(figure)
    for column in range(columns):
        ours = statistics.median(figures["tarn"][column])
        for name in peers:
            theirs = statistics.median(figures[name][column])
            which = ["", " texts"][column] if columns == 2 and column else (" images" if columns == 2 else "")
            print(f"{what}{which}: tarn {ours:.1f} samples/s, {name} {theirs:.1f}, ratio {ours / theirs:.2f}", flush=True)


def main():
    example, pool, shards, *which = sys.argv[1:]
    torch = lambda *args: [sys.executable, "-c", TORCH, *args, str(CORES)]
    if not which or "step" in which:
        for model, batch, n in [("tiny", "128", "12"), ("ViT-B-32", "32", "4")]:
            peers = {f"PyTorch {precision}": torch("step", model, batch, n, precision) for precision in ["float32", "bf16"]}
            compare(f"training step of {model}, batch {batch}", [example, "step", model, batch, n], peers)
    if not which or "encode" in which:
        for model, batch, n in [("tiny", "64", "20"), ("ViT-B-32", "64", "4")]:
            peers = {f"PyTorch {precision}": torch("encode", model, batch, n, precision) for precision in ["float32", "bf16"]}
            compare(f"encoding with {model}, batch {batch}", [example, "encode", model, batch, n], peers, columns=2)
    if not which or "load" in which:
        assert glob.glob(f"{shards}/*.tar"), f"no shards in {shards}"
        peer = {"webdataset": [sys.executable, "-c", LOADER, shards, "224", "1200", "4", str(CORES)]}
        compare("loader at 224 pixels", [example, "load", pool, "224", "1200", "6"], peer)


main()
