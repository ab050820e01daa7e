"""Scores as pure functions of an int64 confusion matrix, which accumulates by summing, and of its label set.

There are two protocols. The paper's pools labels into groups and counts a confusion inside a group as correct, so
its "overall" does not see which part was named. The strict protocol scores each foreground label on its own, and
their mean. Label sets without groups have the strict scores alone.

A label that occurs in neither truth nor prediction has no score: its value is None, it is left out of the mean
and listed under ``absent``. A label that occurs in one of the two counts in every mean, with 0 where a ratio
would be 0/0 (precision of a label that is never predicted, recall of one that is never there), so that all means
run over the same labels.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.labels import NO_ID, PARTS, LabelSet
from utils.tables import markdown

Array = np.ndarray | Tensor
Scores = dict[str, Any]  # {measure: {column: float | None}, "absent": [label name]}, plain values fit for JSON


def confusion_matrix(pred: Array, truth: Array, num_labels: int) -> np.ndarray:
    """Count the pixels of each (truth, prediction) pair.

    pred, truth: integer label maps of one shape, any shape, ids 0 to num_labels - 1, NumPy or on the CPU; pixels whose
    true id is 255 are not counted.
    Returns int64 (num_labels, num_labels), rows = truth, columns = prediction.
    """
    pred, truth = np.asarray(pred), np.asarray(truth)
    counted = truth != NO_ID
    pairs_N = truth[counted].astype(np.int64) * num_labels + pred[counted]
    return np.bincount(pairs_N, minlength=num_labels**2).reshape(num_labels, num_labels)


def confusion_matrices(pred_BHW: Tensor, truth_BHW: Tensor, sizes_B2: Tensor, num_labels: int) -> Tensor:
    """``confusion_matrix`` of each photo in a padded batch; nothing leaves the device.

    sizes_B2: each photo's own (height, width), at the top left; the rest is padding and is not counted.
    Returns counts_BKK, int64 on the device of ``pred_BHW``: rows = truth, columns = prediction.
    """
    batch, height, width = pred_BHW.shape
    counted_BHW = torch.arange(height, device=pred_BHW.device)[:, None] < sizes_B2[:, 0, None, None]
    counted_BHW = counted_BHW & (torch.arange(width, device=pred_BHW.device) < sizes_B2[:, 1, None, None])
    counted_BHW = counted_BHW & (truth_BHW != NO_ID)
    known_BHW = truth_BHW.clamp(max=num_labels - 1).long()  # ignored pixels fall into some cell, and do not count
    pairs_BHW = torch.add(pred_BHW, known_BHW, alpha=num_labels)
    cells_BC = torch.zeros(batch, num_labels**2, dtype=torch.long, device=pred_BHW.device)
    cells_BC.scatter_add_(1, pairs_BHW.flatten(1), counted_BHW.flatten(1).long())
    return cells_BC.view(batch, num_labels, num_labels)


MEASURES = ("strict", "iou", "precision", "recall")  # the first is F1


def measures(cm: Array, ids: Sequence[int]) -> dict[str, float | None]:
    """F1, IoU, precision and recall of the labels G with these ids, pooled, in [0, 1], by the names of ``MEASURES``.

    F1 is 2·|pred∈G ∧ truth∈G| / (|pred∈G| + |truth∈G|). All are None if G is absent from both; precision is 0 if G is
    never predicted, recall if it is never in the truth.
    """
    counts, index = np.asarray(cm), list(ids)
    both, pred, truth = (int(part.sum()) for part in (counts[np.ix_(index, index)], counts[:, index], counts[index]))
    if not pred + truth:
        return dict.fromkeys(MEASURES)
    values = 2 * both / (pred + truth), both / (pred + truth - both), both / max(pred, 1), both / max(truth, 1)
    return dict(zip(MEASURES, values, strict=True))


def f1(cm: Array, ids: Sequence[int]) -> float | None:
    """F1 of pooled labels, see ``measures``."""
    return measures(cm, ids)["strict"]


def scores(cm: Array, labels: LabelSet) -> Scores:
    """Every score of a (K, K) confusion matrix of a label set, as plain values in [0, 1] or None.

    ``paper``: F1 of the set's groups (empty where it has none); ``strict``: F1 of the foreground labels and their
    mean; ``iou``, ``precision``, ``recall``: the same for those measures; ``absent``: labels in neither truth nor
    prediction. Raises ValueError for a matrix of another size.
    """
    if tuple(cm.shape) != (len(labels), len(labels)):
        raise ValueError(f"a confusion matrix {tuple(cm.shape)} is none of the {len(labels)} labels of {labels.name}")
    found = {name: measures(cm, [index]) for index, name in enumerate(labels.names) if index}
    columns = {measure: {name: values[measure] for name, values in found.items()} for measure in MEASURES}
    return {
        "paper": {group: f1(cm, labels.group_ids(group)) for group in labels.groups},
        **{measure: {**column, "mean": _mean(column.values())} for measure, column in columns.items()},
        "absent": [name for name, values in found.items() if values["strict"] is None],
    }


def headline(scores: Scores) -> dict[str, float | None]:
    """The two numbers of a row: the paper's overall F1 (None for label sets without groups), and the strict mean."""
    return {"overall": scores["paper"].get("overall"), "strict": scores["strict"]["mean"]}


def all_classes(cm: Array, labels: LabelSet) -> Scores:
    """The scores that parsers of the whole face are compared by, as plain values in [0, 1] or None.

    ``f1``, ``iou``: of each label, background too; ``miou``: mean IoU of them all; ``pixel_accuracy``: share of the
    pixels that are right; ``mean_accuracy``: mean recall of all labels; ``mean_f1_N``: mean F1 of the N
    foreground labels (18 in CelebAMask-HQ); ``mean_f1_inner8``: of brows, eyes, nose, lips and inner mouth, None for
    label sets that lack some. Labels absent from both truth and prediction are left out of the means.
    """
    found = {name: measures(cm, [index]) for index, name in enumerate(labels.names)}
    f1s, ious = ({name: values[measure] for name, values in found.items()} for measure in ("strict", "iou"))
    shared = [labels.shared.get(name, name) for name in labels.names]
    inner = [labels.names[shared.index(name)] for name in sum(PARTS.values(), ()) if name in shared]
    whole = bool(labels.part_ids) and len(inner) == len(sum(PARTS.values(), ()))
    return {
        "f1": f1s,
        "iou": ious,
        "miou": _mean(ious.values()),
        "pixel_accuracy": int(np.asarray(cm).trace()) / max(1, int(cm.sum())),
        "mean_accuracy": _mean(values["recall"] for values in found.values()),
        f"mean_f1_{len(labels) - 1}": _mean(f1s[name] for name in labels.foreground),
        "mean_f1_inner8": _mean(f1s[name] for name in inner) if whole else None,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None


def challenge_scores(cm: Array) -> dict[str, list[float]]:
    """Scores as a team of the CelebAMask challenge counts them: "iou", "precision", "recall" and "f1" of each id.

    Their means run over all ids, background too, and an id that neither truth nor prediction holds counts as 0.
    """
    counts = np.asarray(cm).astype(np.float64)
    both, pred, truth = np.diagonal(counts), counts.sum(0), counts.sum(1)
    p, r = both / (pred + 1e-6), both / (truth + 1e-6)
    found = {"iou": both / (pred + truth - both + 1e-6), "precision": p, "recall": r, "f1": 2 * p * r / (p + r + 1e-6)}
    return {measure: values.tolist() for measure, values in found.items()}


CHALLENGE_FILES = ("iou_scores.txt", "scores_with_f1_precision_recall.txt")


def challenge_files(cm: Array) -> dict[str, str]:
    """The score files of that team, name -> text."""
    found = challenge_scores(cm)
    mean = {measure: sum(values) / len(values) for measure, values in found.items()}
    ious = [f"Class {k}: IoU = {value:.4f}" for k, value in enumerate(found["iou"])]
    ious += ["", f"Mean IoU (mIoU, average across all classes): {mean['iou']:.4f}"]
    rows = [
        f"Class {k}: Precision = {p:.4f}, Recall = {r:.4f}, F1-score = {score:.4f}"
        for k, (p, r, score) in enumerate(zip(found["precision"], found["recall"], found["f1"], strict=True))
    ]
    titles = {"precision": "Precision", "recall": "Recall", "f1": "F1-score"}
    rows += ["", *(f"Macro {title} (average across all classes): {mean[name]:.4f}" for name, title in titles.items())]
    return {name: "\n".join(lines) + "\n" for name, lines in zip(CHALLENGE_FILES, (ious, rows), strict=True)}


def classes_table(cm: Array, labels: LabelSet) -> str:
    """F1 and IoU of every label, one a row, and their means, in Markdown."""
    found = all_classes(cm, labels)
    rows: list[list[Any]] = [[name, found["f1"][name], found["iou"][name]] for name in labels.names]
    rows.append([f"mean F1 of {len(labels) - 1}", found[f"mean_f1_{len(labels) - 1}"], None])
    rows.append(["mean F1 of the inner 8", found["mean_f1_inner8"], None])
    rows.append([f"mean IoU of {len(labels)}", None, found["miou"]])
    return markdown(["class", "F1", "IoU"], rows)


def accuracies(cm: Array, labels: LabelSet) -> str:
    """One line: pixel and mean accuracy over all labels, background too."""
    found = all_classes(cm, labels)
    return f"pixel accuracy {found['pixel_accuracy']:.4f}, mean accuracy {found['mean_accuracy']:.4f}\n"


def _columns(labels: LabelSet) -> dict[str, list[str]]:
    """The columns of each measure, in their order."""
    return {"paper": list(labels.groups), **{key: [*labels.foreground, "mean"] for key in MEASURES}}


def table(rows: Mapping[str, Scores], labels: LabelSet) -> str:
    """F1 in Markdown: the paper's table, left out for label sets without groups, and the strict one.

    rows: title -> scores; one line for each.
    """
    texts = []
    for measure in ("paper", "strict"):
        if columns := _columns(labels)[measure]:
            cells = [[title, *(row[measure][name] for name in columns)] for title, row in rows.items()]
            texts.append(markdown([f"F1, {measure}", *columns], cells))
    return "\n".join(texts)


def measures_table(scores: Scores, labels: LabelSet) -> str:
    """IoU, precision and recall of the foreground labels and their means, in Markdown."""
    columns = [*labels.foreground, "mean"]
    titles = {"iou": "IoU", "precision": "precision", "recall": "recall"}
    rows = [[title, *(scores[measure][name] for name in columns)] for measure, title in titles.items()]
    return markdown(["all labels", *columns], rows)


def to_csv(rows: Mapping[str, Scores], labels: LabelSet) -> str:
    """CSV with a header, one line per title, columns ``<measure>.<column>`` in full precision, absent = empty."""
    columns = [(measure, name) for measure, names in _columns(labels).items() for name in names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *(f"{measure}.{name}" for measure, name in columns)])
    for title, row in rows.items():
        writer.writerow([title, *(row[measure][name] for measure, name in columns)])
    return text.getvalue()


def misnamed(matrix_KK: np.ndarray, labels: LabelSet) -> list[str]:
    """The labels, as "truth -> prediction", that swapped names in a confusion matrix (rows: truth): more than half of
    one's pixels are called another, which means it in more than half of its own; empty for a single one."""
    found = []
    for true in range(1, len(labels)):
        predicted = int(matrix_KK[true].argmax())
        both = 2 * matrix_KK[true, predicted]
        if predicted not in (0, true) and both > max(matrix_KK[true].sum(), matrix_KK[:, predicted].sum()):
            found.append(f"{labels.names[true]} -> {labels.names[predicted]}")
    return found if len(found) > 1 else []
