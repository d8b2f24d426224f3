#!/usr/bin/env python3
"""Agreement with open_clip: tokens of 10,000 captions, checkpoints in both directions, features of files.

    pip install torch open_clip_torch pyarrow pillow
    cargo build --release --workspace --bins --examples
    python tests/peers/agreement.py TARN EXAMPLE DATA RUN

TARN is target/release/tarn, EXAMPLE target/release/examples/training, DATA the folder of test data (its captions and
clip-tiny's images are used), RUN a run of `tarn train`.

The captions are those of commonpool-mini and clip-tiny, and such of them as came to harm on the way: decoded by another
table, with HTML entities, ligatures, terminal escapes, odd spaces.
"""
import glob
import json
import os
import random
import subprocess
import sys
import tempfile

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image


def captions(data, count=10_000):
    random.seed(1)
    texts = []
    for path in sorted(glob.glob(f"{data}/commonpool-mini/metadata/*.parquet")):
        texts += [text for text in pq.read_table(path, columns=["text"])["text"].to_pylist() if text]
    texts += ["a cat <end_of_text> on a mat", "<start_of_text>", "&#7;&#xfdd0;<b>&#x7f;"]
    texts += json.load(open(f"{data}/clip-tiny/reference.json"))["captions"]
    natural = len(texts)
    tables = ["latin-1", "cp1252", "cp1251", "mac_roman", "cp437", "cp1250", "cp1253", "cp1254", "cp1257", "iso8859-2"]
    entities = [" &copy; 2019", " &eacute;t&eacute", "&lt;b&gt;", " &hellip;", "&#8217;s", "&#x1F600;", "&nbsp;", "&amp;amp;", " &#150;", "&NTILDE;"]
    tails = ["…", "“x”", "‘y’", "ﬁn", "ﬄ", "Ａｂｃ", "ｶﾀｶﾅ", "\u200b", "\x1b[31mred\x1b[0m", "\x85", "\x93hi\x94", "\ufeff", "e\u0301", "\r\nx", "\u2028y", "\x00z", "Ĳ", "ŉ", "ǆ"]
    while len(texts) < count:
        text, kind = random.choice(texts[:natural]), random.random()
        wrong = lambda text, table: text.encode().decode(table, "replace")
        if kind < 0.5:
            text = wrong(text, random.choice(tables))
        elif kind < 0.6:
            text = wrong(wrong(text, "cp1252"), "cp1252")
        elif kind < 0.7:
            text = text.replace("'", "&#39;").replace('"', "&quot;").replace("&", "&amp;") + random.choice(entities)
        elif kind < 0.8:
            words = text.split(" ")
            at = random.randrange(len(words))
            words[at] = wrong(words[at], "cp1252")
            text = " ".join(words)
        elif kind < 0.9:
            text += random.choice(tails)
        else:
            text = text.replace(" ", random.choice(["\xa0", "  ", "\t", "\u3000", "\n"]))
        texts.append(text)
    return texts, natural


def tokens(example, data):
    texts, natural = captions(data)
    out = subprocess.run([example, "tokens"], input=json.dumps(texts), capture_output=True, text=True, check=True)
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    wrong = []
    for i, (text, line) in enumerate(zip(texts, out.stdout.splitlines(), strict=True)):
        expected = tokenize(text)[0].tolist()
        got = json.loads(line)
        if got + [0] * (77 - len(got)) != expected:
            wrong.append(i)
    for i in wrong[:10]:
        print("  differs:", repr(texts[i])[:150])
    as_found = sum(i < natural for i in wrong)
    print(f"tokens: {len(texts)} captions, {len(wrong)} differ ({as_found} of the {natural} that came as they are)")
    assert not wrong


def relative(got, expected):
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def checkpoints(tarn, data, run):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{os.path.abspath(run)}")
    model.eval()
    images = sorted(glob.glob(f"{data}/clip-tiny/images/*"))
    texts = json.load(open(f"{data}/clip-tiny/reference.json"))["captions"]
    texts = [text.replace("\n", " ").replace("\r", " ") for text in texts]
    with torch.inference_mode():
        image_features = model.encode_image(torch.stack([preprocess(Image.open(path)) for path in images])).numpy()
        text_features = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts)).numpy()
    with tempfile.TemporaryDirectory() as folder:
        open(f"{folder}/texts.txt", "w").write("\n".join(texts) + "\n")
        # open_clip's own checkpoints: everything in one file, and the configuration beside it.
        torch.save({"epoch": 1, "name": "run", "state_dict": model.state_dict()}, f"{folder}/epoch_1.pt")
        torch.save({f"module.{name}": value.half() for name, value in model.state_dict().items()}, f"{folder}/half.pt")
        os.link(f"{run}/open_clip_config.json", f"{folder}/open_clip_config.json")
        for name in [run, f"{folder}/epoch_1.pt", f"{folder}/half.pt"]:
            args = [tarn, "encode", name, "--images", f"{data}/clip-tiny/images", "--texts", f"{folder}/texts.txt", "-o", f"{folder}/out.npz"]
            subprocess.run(args, check=True, capture_output=True)
            got = np.load(f"{folder}/out.npz")
            assert [os.path.basename(name.decode()) for name in got["image_files"]] == [os.path.basename(path) for path in images]
            ours = relative(got["image_features"], image_features), relative(got["text_features"], text_features)
            assert ours[1] < (1e-5 if name == run else 2e-3)
            print(f"features of {os.path.basename(name)}: images differ by {ours[0]:.1e} (JPEG decoders), texts by {ours[1]:.1e}")


def main():
    tarn, example, data, run = sys.argv[1:]
    tokens(example, data)
    checkpoints(tarn, data, run)


main()
