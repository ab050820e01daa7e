"""Files of scores: tables, CSV, JSON, and pictures of the worst faces."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data.labels import NINE
from scoring.evaluation import Evaluation
from scoring.metrics import (
    CHALLENGE_FILES,
    accuracies,
    all_classes,
    challenge_files,
    challenge_scores,
    classes_table,
    measures_table,
    scores,
    table,
    to_csv,
)
from scoring.pictures import encode
from utils import files

PICTURES = "[0-9]*_[01].[0-9]*_*.jpg"  # in worst/


def worst_faces(evaluation: Evaluation, count: int) -> list[tuple[int, float]]:
    """(index, strict mean F1) of the faces with the lowest; a face without any label, true or predicted, scores 1."""
    if not count:
        return []
    means = [scores(matrix_KK, evaluation.labels)["strict"]["mean"] for matrix_KK in evaluation.matrices_NKK]
    filled = [(index, 1.0 if mean is None else mean) for index, mean in enumerate(means)]
    return sorted(filled, key=lambda item: item[1])[:count]


def tables(evaluation: Evaluation) -> str:
    """The row's F1 tables and that of the other measures, in Markdown, and its accuracies."""
    result, labels = evaluation.scores(), evaluation.labels
    total_KK = evaluation.matrices_NKK.sum(0)
    texts = [table({evaluation.title: result}, labels), measures_table(result, labels)]
    texts += [] if labels == NINE else [classes_table(total_KK, labels)]
    return "\n".join([*texts, accuracies(total_KK, labels)])


def save(out: Path, evaluation: Evaluation, worst: int = 0) -> dict[str, Any]:
    """Write scores.csv, scores.md, worst/*.jpg and, last, scores.json into a folder; returns what scores.json holds.

    For the labels of the CelebAMask challenge, also the score files of one of its teams.
    worst: of so many faces, those with the lowest scores, pictures are saved. Raises OSError.
    """
    result, total_KK = evaluation.scores(), evaluation.matrices_NKK.sum(0)
    ranked = worst_faces(evaluation, worst)
    found = all_classes(total_KK, evaluation.labels)
    content = {
        **result,
        **found,
        "iou": {**found["iou"], "mean": result["iou"]["mean"]},
        **({"challenge": challenge_scores(total_KK)} if evaluation.challenge() else {}),
        "images": len(evaluation.names),
        "labels": evaluation.labels.name,
        **evaluation.about,
        "confusion": total_KK.tolist(),
        "worst": [{"name": evaluation.names[index], "strict_mean": mean} for index, mean in ranked],
    }
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(out / "scores.csv", to_csv({evaluation.title: result}, evaluation.labels))
    files.write_text(out / "scores.md", tables(evaluation))
    if evaluation.challenge():
        for name, text in challenge_files(total_KK).items():
            files.write_text(out / name, text)
    save_pictures(out / "worst", evaluation, ranked)
    files.write_text(out / "scores.json", json.dumps(content, indent=1) + "\n")
    return content


def written_before(out: Path) -> list[Path]:
    """What a folder holds of the files that ``save`` writes or removes."""
    names = ("scores.json", "scores.csv", "scores.md", *CHALLENGE_FILES)
    scores = [path for name in names if os.path.lexists(path := out / name)]
    return scores + sorted((out / "worst").glob(PICTURES))


def save_pictures(folder: Path, evaluation: Evaluation, ranked: Sequence[tuple[int, float]]) -> None:
    """The pictures of these faces, instead of an earlier call's. Raises OSError."""
    for old in folder.glob(PICTURES):
        old.unlink()
    if ranked:
        folder.mkdir(exist_ok=True)
    for place, (index, mean) in enumerate(ranked, 1):
        name = os.fsdecode(os.fsencode(evaluation.names[index])[:200])  # with the rest no longer than disks allow
        path = folder / f"{place:03d}_{mean:.4f}_{name}.jpg"
        picture = Image.fromarray(evaluation.picture(index))
        files.write_bytes(path, encode(picture, "JPEG", quality=92))
