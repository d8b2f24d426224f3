#!/usr/bin/env python3
"""The trainer on a GPU beside open_clip on the same one: whether it computes what the CPU does, and how fast both are.

    pip install torch open_clip_torch
    cargo build --release --workspace --all-targets
    python tests/peers/gpu.py TARN EXAMPLE POOL [MODEL ...]

TARN is target/release/tarn, EXAMPLE target/release/examples/training, POOL a pool with images; models are ViT-B-32, ViT-B-16
and ViT-L-14. First the self-test of TARN, on POOL's images; then training steps at batch 4096 for each model, tarn, open_clip eagerly and open_clip compiled in turn,
three times each, medians of the rounds (the first of a run is left out). open_clip runs in bfloat16 by autocast with fused
AdamW and TF32 for what is left in float32, on the largest batch up to 4096 that it has memory for; captions have 8 to 31 tokens,
which tarn packs and open_clip pads to 77. An example built with `--features tarn-shell/libtorch` is measured on PyTorch's
operations, too. Then a hundred steps of the scale small on POOL: samples a second, and the share of the time that was waited
for data. With two GPUs the same steps by one and by two processes: their losses.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile

RUNS = 3
BATCH = 4096

TORCH = r"""
import sys, time, torch, open_clip
name, batch, rounds, compiled = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == 'compiled'
torch.backends.cuda.matmul.allow_tf32 = True
plain = open_clip.create_model(name).cuda()
model = torch.compile(plain) if compiled else plain
loss = open_clip.ClipLoss()
optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True)
def inputs(batch):
    pixels = torch.randn(batch, 3, 224, 224, device='cuda')
    tokens = torch.zeros(batch, 77, dtype=torch.long)
    for i in range(batch):
        words = 6 + i * 5 % 24
        tokens[i, 0], tokens[i, 1 + words] = 49406, 49407
        tokens[i, 1:1 + words] = torch.arange(300, 300 + words)
    return pixels, tokens.cuda()
def step(pixels, tokens):
    optimizer.zero_grad()
    with torch.autocast('cuda', dtype=torch.bfloat16):
        images, texts, scale = model(pixels, tokens)[:3]
        total = loss(images, texts, scale)
    total.backward()
    optimizer.step()
    with torch.no_grad():
        plain.logit_scale.clamp_(0, 4.6052)
while True:
    try:
        data = inputs(batch)
        step(*data)
        step(*data)
        torch.cuda.synchronize()
        break
    except torch.OutOfMemoryError:
        data = None
        optimizer.zero_grad()
        torch.cuda.empty_cache()
        batch //= 2
print('batch', batch, file=sys.stderr)
for _ in range(rounds):
    start = time.time()
    step(*data)
    torch.cuda.synchronize()
    print(batch / (time.time() - start), flush=True)
"""


def rounds(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        return None
    numbers = [float(line) for line in done.stdout.split()]
    return statistics.median(numbers[1:] or numbers)


def metrics(run):
    with open(os.path.join(run, "metrics.jsonl")) as lines:
        return [json.loads(line) for line in lines]


def train(tarn, pool, run, steps, before=()):
    command = [*before, tarn, "train", pool, "--select", "no_filter", "--scale", "small", "--max-steps", str(steps), "-o", run]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def recipe(tarn, pool):
    with tempfile.TemporaryDirectory() as folder:
        run = os.path.join(folder, "run")
        if not train(tarn, pool, run, 100):
            return False
        steps = metrics(run)[10:]
    rate = statistics.median(step["samples_per_second"] for step in steps)
    wait = statistics.mean(step["data_wait"] for step in steps)
    print(f"scale small on {pool}: {rate:.0f} samples/s, data wait {100 * wait:.1f}%, all of it in {12.8e6 / rate / 60:.0f} minutes")
    return True


def together(tarn, pool):
    import torch

    if torch.cuda.device_count() < 2:
        print("two processes: skipped, there is one GPU")
        return True
    with tempfile.TemporaryDirectory() as folder:
        one, two = os.path.join(folder, "one"), os.path.join(folder, "two")
        both = ["torchrun", "--nproc_per_node", "2", "--no-python"]
        if not train(tarn, pool, one, 20) or not train(tarn, pool, two, 20, both):
            return False
        apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(metrics(one), metrics(two)))
    print(f"two processes: losses at most {apart:.4f} from one's")
    return apart < 0.05


def main():
    tarn, example, pool, *models = sys.argv[1:]
    right = subprocess.run([tarn, "doctor", "--gpu", "--device", "cuda:0", "--pool", pool]).returncode == 0
    for model in models or ["ViT-B-32", "ViT-B-16", "ViT-L-14"]:
        sides = {
            "tarn": [example, "step", model, str(BATCH), "6", "cuda"],
            "tarn on libtorch": [example, "step", model, str(BATCH), "6", "libtorch"],
            "open_clip, eager": [sys.executable, "-c", TORCH, model, str(BATCH), "6", "eager"],
            "open_clip, compiled": [sys.executable, "-c", TORCH, model, str(BATCH), "6", "compiled"],
        }
        rates = {side: [] for side in sides}
        for _ in range(RUNS):
            for side, command in sides.items():
                rates[side].append(rounds(command))
        medians = {side: statistics.median(r) for side, r in rates.items() if None not in r}
        for side, rate in medians.items():
            ratio = f"{medians['tarn'] / rate:5.2f}" if "tarn" in medians else ""
            print(f"{model:10} {side:20} {rate:9.0f} samples/s  {ratio}")
        right &= "tarn" in medians
    right &= recipe(tarn, pool)
    right &= together(tarn, pool)
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
