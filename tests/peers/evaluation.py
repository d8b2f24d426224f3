#!/usr/bin/env python3
"""Zero-shot evaluation beside clip_benchmark's, on the same cores, model, images and texts: loading included, the model's
start and the classifier left out on both sides. What both say of the images must agree.

    pip install torch torchvision open_clip_torch clip_benchmark webdataset safetensors pillow "numpy<2.3"
    cargo build --release
    python tests/peers/evaluation.py TARN SHARDS WORK

TARN is target/release/tarn, SHARDS a folder of webdataset shards with photographs and captions, WORK an empty folder for
the sets and models that are made first. Both sides run in turn, three times each; medians and their ratio are printed.
"""
import glob
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile

CORES = os.cpu_count()
RUNS = 3
SHARDS = 2 * CORES  # clip_benchmark gives each worker shards of its own
CLASSES = ["dog", "person", "beach", "child", "street", "ball", "water", "bicycle", "crowd", "mountain"]
TINY = dict(
    embed_dim=64,
    vision_cfg=dict(image_size=64, layers=3, width=96, head_width=32, patch_size=16),
    text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=2),
)

PEER = r"""
import json, sys, time, torch, open_clip
from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification as zsc, zeroshot_retrieval as zsr
from safetensors.torch import load_file
folder, data, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(workers)
config = json.load(open(folder + '/open_clip_config.json'))['model_cfg']
model = open_clip.CLIP(**config)
model.load_state_dict(load_file(folder + '/open_clip_model.safetensors'))
model.eval()
transform = open_clip.image_transform(config['vision_cfg']['image_size'], is_train=False)
tokenizer = open_clip.get_tokenizer('ViT-B-32')
dataset = build_wds_dataset('photos', transform, data_dir=data)
retrieval = dataset.classes is None
loader = lambda: torch.utils.data.DataLoader(
    dataset.batched(64, collation_fn=image_captions_collate_fn) if retrieval else dataset.batched(64),
    batch_size=None, shuffle=False, num_workers=workers)
if retrieval:
    start = time.time()
    metrics = zsr.evaluate(model, loader(), tokenizer, 'cpu', amp=False, recall_k_list=[1, 5, 10])
else:
    classifier = zsc.zero_shot_classifier(model, tokenizer, dataset.classes, dataset.templates, 'cpu', amp=False)
    start = time.time()
    logits, target = zsc.run_classification(model, classifier, loader(), 'cpu', amp=False)
    acc1, acc5 = zsc.accuracy(logits, target, topk=(1, 5))
    metrics = dict(acc1=acc1, acc5=acc5)
print(json.dumps(dict(seconds=time.time() - start, metrics=metrics)))
"""


def add(tar, name, data):
    import io

    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def make_sets(shards, work):
    """The shards' photographs as a classification with made-up labels, and as a retrieval with their captions."""
    sets = {name: work / "sets" / f"wds_{name}_test" for name in ["photos", "captions"]}
    for folder in sets.values():
        (folder / "test").mkdir(parents=True)
        (folder / "test/nshards.txt").write_text(str(SHARDS))
    (sets["photos"] / "classnames.txt").write_text("\n".join(CLASSES))
    (sets["photos"] / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na picture with a {c}.")
    (sets["captions"] / "dataset_type.txt").write_text("retrieval")
    n = 0
    tars = {name: [tarfile.open(folder / f"test/{i}.tar", "w") for i in range(SHARDS)] for name, folder in sets.items()}
    for path in sorted(glob.glob(f"{shards}/*.tar")):
        members = tarfile.open(path)
        for member in members:
            if member.name.endswith(".jpg"):
                image = members.extractfile(member).read()
                text = members.extractfile(member.name[:-4] + ".txt").read()
                for name, extension, about in [("photos", "cls", str(n % len(CLASSES)).encode()), ("captions", "txt", text)]:
                    tar = tars[name][n % SHARDS]
                    add(tar, f"s{n:07d}.jpg", image)
                    add(tar, f"s{n:07d}.{extension}", about)
                n += 1
    [tar.close() for of_set in tars.values() for tar in of_set]
    return sets, n


def make_models(work):
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    preprocess = dict(mean=list(open_clip.OPENAI_DATASET_MEAN), std=list(open_clip.OPENAI_DATASET_STD))
    for name, config in [("tiny", TINY), ("ViT-B-32", open_clip.get_model_config("ViT-B-32"))]:
        folder = work / name
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps(dict(model_cfg=config, preprocess_cfg=preprocess)))
        save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
        yield name, folder


def tarn(program, model, key, folder, work):
    out = work / "out"
    subprocess.run([program, "eval", model, "--data", folder, "-o", out, "--overwrite"], check=True, capture_output=True)
    lines = [json.loads(line) for line in open(out / "eval_results_other.jsonl")]
    return next(line for line in lines if line["key"] == key)


def main():
    program, shards, work = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    sets, n = make_sets(shards, work)
    for name, model in make_models(work):
        for key, folder in sets.items():
            tarn(program, model, key, folder, work)  # makes the classifier, which is kept
            ours, theirs = [], []
            for _ in range(RUNS):
                ours.append(tarn(program, model, key, folder, work))
                peer = [sys.executable, "-c", PEER, str(model), str(folder), str(CORES)]
                theirs.append(json.loads(subprocess.run(peer, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
            a, b = (n / statistics.median(run["seconds"] for run in runs) for runs in (ours, theirs))
            print(f"{name}, {key}: tarn {a:.1f} images/s, clip_benchmark {b:.1f}, ratio {a / b:.2f}", flush=True)
            for metric, expected in theirs[0]["metrics"].items():
                got = ours[0]["metrics"][metric]
                print(f"  {metric}: {got:.4f}, {expected:.4f}{'' if abs(got - expected) < 0.005 else '  DIFFERS'}", flush=True)


main()
