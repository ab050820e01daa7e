"""Scores as pure functions of one int64 confusion matrix, which accumulates by summing.

Two protocols stand side by side. The paper's pools labels into groups and calls a confusion inside a group
correct, so its "overall" does not see which part was named. The strict one takes each of the eight foreground
labels on its own, and their mean.

A label that occurs in neither truth nor prediction has no score: its value is None, it is left out of the mean
and listed under ``absent``. A label that occurs in one of the two counts in every mean, with 0 where a ratio
would be 0/0 (precision of a label never predicted, recall of one never there), so that all means run over the
same labels.
"""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from data.labels import LABELS, NUM_LABELS, PAPER_GROUPS

FOREGROUND = {name: (index,) for index, name in enumerate(LABELS) if index}
MEASURES = ("paper", "strict", "iou", "precision", "recall")
ABSENT = "–"

Array = np.ndarray | torch.Tensor
Scores = dict[str, Any]  # {measure: {column: float | None}, "absent": [label name]}, plain values fit for JSON


def confusion_matrix(pred: Array, truth: Array, num_labels: int = NUM_LABELS) -> np.ndarray:
    """Count the pixels of each (truth, prediction) pair.

    pred, truth: integer label maps of one shape, any shape, ids 0..num_labels-1, NumPy or torch. Tensors are
    counted on the device where ``pred`` lies; only the counts leave it.
    Returns int64 (num_labels, num_labels), rows = truth, columns = prediction.
    Raises ValueError for shapes that differ, ids out of range, and maps that are not integers.
    """
    if tuple(pred.shape) != tuple(truth.shape):
        raise ValueError(f"prediction {tuple(pred.shape)} and truth {tuple(truth.shape)} differ in shape")
    if isinstance(pred, torch.Tensor) or isinstance(truth, torch.Tensor):
        device = pred.device if isinstance(pred, torch.Tensor) else None
        pred_N, truth_N = (torch.as_tensor(ids, device=device).reshape(-1) for ids in (pred, truth))
        for name, ids in (("prediction", pred_N), ("truth", truth_N)):
            _check_ids(name, ids, not (ids.is_floating_point() or ids.is_complex()), num_labels)
        pairs = truth_N.long() * num_labels + pred_N.long()
        counts = torch.bincount(pairs, minlength=num_labels**2).cpu().numpy()
    else:
        for name, labels in (("prediction", pred), ("truth", truth)):
            _check_ids(name, labels, labels.dtype.kind in "iub", num_labels)
        pairs_N = truth.astype(np.int64).ravel() * num_labels + pred.astype(np.int64).ravel()
        counts = np.bincount(pairs_N, minlength=num_labels**2)
    return counts.astype(np.int64).reshape(num_labels, num_labels)


def _check_ids(name: str, ids: Array, integer: bool, num_labels: int) -> None:
    if not integer:
        raise ValueError(f"{name} must hold integer ids, not {ids.dtype}")
    if 0 in ids.shape:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= num_labels:
        raise ValueError(f"{name} holds ids {low}..{high}; the labels are 0..{num_labels - 1}")


def _overlap(cm: Array, group: Sequence[int]) -> tuple[int, int, int]:
    """Pixels of the group in both, in the prediction, in the truth."""
    counts = np.asarray(cm)
    index = list(group)
    return int(counts[np.ix_(index, index)].sum()), int(counts[:, index].sum()), int(counts[index].sum())


def f1(cm: Array, group: Sequence[int]) -> float | None:
    """2·|pred∈G ∧ truth∈G| / (|pred∈G| + |truth∈G|), in [0, 1]; None if G is absent from both."""
    both, pred, truth = _overlap(cm, group)
    return 2 * both / (pred + truth) if pred + truth else None


def iou(cm: Array, group: Sequence[int]) -> float | None:
    """|pred∈G ∧ truth∈G| / |pred∈G ∨ truth∈G|, in [0, 1]; None if G is absent from both."""
    both, pred, truth = _overlap(cm, group)
    return both / (pred + truth - both) if pred + truth else None


def precision(cm: Array, group: Sequence[int]) -> float | None:
    """|pred∈G ∧ truth∈G| / |pred∈G|, in [0, 1]; 0 if G is never predicted; None if G is absent from both."""
    both, pred, truth = _overlap(cm, group)
    return both / max(pred, 1) if pred + truth else None


def recall(cm: Array, group: Sequence[int]) -> float | None:
    """|pred∈G ∧ truth∈G| / |truth∈G|, in [0, 1]; 0 if G is never in the truth; None if G is absent from both."""
    both, pred, truth = _overlap(cm, group)
    return both / max(truth, 1) if pred + truth else None


def _per_label(cm: Array, measure: Callable[[Array, Sequence[int]], float | None]) -> dict[str, float | None]:
    values = {name: measure(cm, group) for name, group in FOREGROUND.items()}
    present = [value for value in values.values() if value is not None]
    return {**values, "mean": sum(present) / len(present) if present else None}


def scores(cm: Array) -> Scores:
    """Every score of a (9, 9) confusion matrix, as plain values in [0, 1] or None.

    ``paper``: F1 of the paper's groups; ``strict``: F1 of the eight labels and their mean; ``iou``,
    ``precision``, ``recall``: the same for those measures; ``absent``: labels in neither truth nor prediction.
    """
    strict = _per_label(cm, f1)
    return {
        "paper": {name: f1(cm, group) for name, group in PAPER_GROUPS.items()},
        "strict": strict,
        "iou": _per_label(cm, iou),
        "precision": _per_label(cm, precision),
        "recall": _per_label(cm, recall),
        "absent": [name for name in FOREGROUND if strict[name] is None],
    }


def _markdown(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    lines = [f"| {title} | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for name, values in rows.items():
        cells = [ABSENT if (value := values[column]) is None else f"{value:.4f}" for column in columns]
        escaped = name.replace("|", "\\|")
        lines.append(f"| {escaped} | {' | '.join(cells)} |")
    return lines


def table(rows: Mapping[str, Scores]) -> str:
    """Two Markdown tables, the paper's columns and the strict ones; one line per name in ``rows``."""
    paper = _markdown("F1, paper", list(PAPER_GROUPS), {name: row["paper"] for name, row in rows.items()})
    strict = _markdown("F1, strict", [*FOREGROUND, "mean"], {name: row["strict"] for name, row in rows.items()})
    return "\n".join([*paper, "", *strict]) + "\n"


def to_csv(rows: Mapping[str, Scores]) -> str:
    """CSV with a header, one line per name, columns ``<measure>.<column>`` in full precision, absent = empty."""
    columns = [("paper", name) for name in PAPER_GROUPS]
    columns += [(measure, name) for measure in MEASURES[1:] for name in (*FOREGROUND, "mean")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *(f"{measure}.{name}" for measure, name in columns)])
    for row_name, row in rows.items():
        writer.writerow([row_name, *(row[measure][name] for measure, name in columns)])
    return text.getvalue()
