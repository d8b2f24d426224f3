"""Writes metrics.json beside it: metrics of made-up predictions as scikit-learn, WILDS and clip_benchmark count them.

    pip install clip_benchmark scikit-learn wilds torch "numpy<2.3"
    python tests/golden/metrics.py
"""
import json
import pathlib
import warnings

import numpy as np
import sklearn.metrics as sk
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from wilds.common.grouper import CombinatorialGrouper
from wilds.common.metrics.all_metrics import F1, Accuracy, Recall
from wilds.datasets.wilds_dataset import WILDSDataset
import wilds.common.metrics.metric
import wilds.common.utils

warnings.filterwarnings("ignore")
rng = np.random.default_rng(7)


def avg_over_groups(v, g, n_groups):
    """WILDS's own, without torch_scatter."""
    counts = wilds.common.utils.get_counts(g, n_groups)
    return torch.zeros(n_groups).scatter_add_(0, g, v.float()) / counts, counts


wilds.common.metrics.metric.avg_over_groups = avg_over_groups


class Set(WILDSDataset):
    def __init__(self, fields, values):
        self._metadata_fields, self._metadata_array = fields, values


class TopK(Accuracy):
    def _compute_element_wise(self, y_pred, y_true):
        return (y_pred == y_true.unsqueeze(-1)).any(-1).float()


def plain(value):
    value = float(value)
    return None if np.isnan(value) else value


def grouped(metric, fields, by, values, y_pred, y_true):
    values = torch.tensor(values)
    grouper = CombinatorialGrouper(Set(fields, values), by)
    results, _ = WILDSDataset.standard_group_eval(metric, grouper, y_pred, y_true, values)
    return {name: plain(value) for name, value in results.items()}


def classification(n, classes, missing):
    """Logits without ties; one class of `missing` never labels a sample, but may be predicted."""
    logits = rng.normal(size=(n, classes)).astype("f4")
    labels = rng.choice([c for c in range(classes) if c != missing], size=n)
    logits[np.arange(n), labels] += rng.random(n) < 0.5
    top = np.argsort(-logits, axis=1)
    t, l = torch.tensor(labels), torch.tensor(logits)
    acc = zeroshot_classification.accuracy(l, t, topk=(1, 5))
    results = {"acc1": acc[0], "acc5": acc[1], "mean_per_class_recall": sk.balanced_accuracy_score(labels, top[:, 0])}
    for metric in [Accuracy(), Recall(average="macro"), F1(average="macro")]:
        results.update({k: plain(v) for k, v in metric.compute(torch.tensor(top[:, 0]), t).items()})
    fields = ["region", "year", "y"]
    values = np.stack([rng.choice([0, 1, 3], size=n), rng.integers(0, 4, size=n), labels], axis=1)
    return {
        "logits": logits.round(6).tolist(),
        "labels": labels.tolist(),
        "metrics": results,
        "fields": fields,
        "values": values.tolist(),
        "by_year": grouped(Accuracy(), fields, ["year"], values, torch.tensor(top[:, 0]), t),
        "by_region": grouped(Accuracy(), fields, ["region"], values, torch.tensor(top[:, 0]), t),
        "top5_by_region": grouped(TopK(name="acc_top5"), fields, ["region"], values, torch.tensor(top[:, :5].copy()), t),
    }


def faces(n):
    """Predictions and metadata of FairFace's form; the groupings of DataComp's fairness evaluation."""
    answers = np.stack([rng.integers(0, 7, n), rng.integers(0, 2, n), rng.integers(0, 9, n), rng.integers(0, 24, n)], axis=1)
    race = rng.integers(0, 7, n)
    values = np.stack([rng.integers(0, 9, n), rng.integers(0, 2, n), race, (race != 1).astype(int)], axis=1)
    fields = ["age", "gender", "race", "race_binary"]
    a, v, ones = torch.tensor(answers), torch.tensor(values), torch.ones(n, dtype=torch.int)
    metrics = {}
    add = lambda name, by, pred, true: metrics.update(grouped(Accuracy(name=name), fields, by, values, pred, true))
    add("acc_race", ["race_binary"], (a[:, 0] != 1).int(), v[:, 3])
    add("acc_gender", ["race_binary"], a[:, 1], v[:, 1])
    add("acc_age", ["race_binary"], a[:, 2], v[:, 0])
    add("acc_gender_x", ["gender", "race"], a[:, 1], v[:, 1])
    add("toxicity_crime", ["race"], (a[:, 3] >= 18).int(), ones)
    add("toxicity_nonhuman", ["race"], ((a[:, 3] >= 14) & (a[:, 3] < 18)).int(), ones)
    return {"answers": answers.tolist(), "values": values.tolist(), "metrics": metrics}


def retrieval(images, dim):
    """Images with one to three captions each, as features; clip_benchmark's evaluation of them."""
    captions = rng.integers(1, 4, images)
    image_of = np.repeat(np.arange(images), captions)
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("f4")
    image_features = unit(rng.normal(size=(images, dim)))
    text_features = unit(image_features[image_of] + 0.9 * rng.normal(size=(len(image_of), dim)))

    class Model:
        encode_image = staticmethod(lambda x: image_features_t[x[:, 0].long()])
        encode_text = staticmethod(lambda x: text_features_t[x])

    image_features_t, text_features_t = torch.tensor(image_features), torch.tensor(text_features)
    of = lambda i: [int(t) for t in np.flatnonzero(image_of == i)]
    batches = [(torch.arange(s, min(s + 8, images)).float()[:, None], [of(i) for i in range(s, min(s + 8, images))]) for s in range(0, images, 8)]
    metrics = zeroshot_retrieval.evaluate(Model, batches, torch.tensor, "cpu", amp=False, recall_k_list=[1, 5, 10])
    return {"images": image_features.round(6).tolist(), "captions": text_features.round(6).tolist(), "image_of": image_of.tolist(), "metrics": metrics}


def association(n):
    """Cues with 5, 6, 10 or 12 candidates; scikit-learn's Jaccard index of the best as many as are associated."""
    questions, scores, sizes = [], [], []
    for i in range(n):
        size = [5, 6, 10, 12][i % 4]
        similar = rng.normal(size=size).astype("f4")
        associated = np.isin(np.arange(size), rng.choice(size, rng.integers(1, size // 2 + 1), replace=False))
        chosen = np.isin(np.arange(size), np.argsort(similar)[-associated.sum():])
        score = float(sk.jaccard_score(associated, chosen))
        questions.append({"similar": similar.round(6).tolist(), "associated": associated.tolist(), "score": score})
        scores.append(score), sizes.append(size)
    scores, sizes = np.array(scores), np.array(sizes)
    metrics = {"avg_jaccard_score": scores.mean(), "jaccard_score_5-6": scores[sizes <= 6].mean(), "jaccard_score_10-12": scores[sizes >= 10].mean()}
    metrics.update({f"jaccard_score_{size}": scores[sizes == size].mean() for size in [5, 6, 10, 12]})
    return {"questions": questions, "metrics": metrics}


golden = {"classification": classification(60, 8, missing=3), "faces": faces(80), "retrieval": retrieval(30, 6), "association": association(24)}
pathlib.Path(__file__).with_name("metrics.json").write_text(json.dumps(golden) + "\n")
