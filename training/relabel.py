"""Self-distilled labels: where a parser is sure, its label takes the place of the training label, unless that is rare.

A team of the CelebAMask challenge regularises its training so, without the exception: a model that has not yet learnt
earrings or necklaces is often sure of what lies behind them, and would erase them.
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data import images
from data.labels import NO_ID
from data.loaders import Faces
from data.relabelled import RECORD
from models.loading import load_for_inference
from scoring.pictures import encode_labels
from utils import distributed, files, runtime
from utils.errors import InputError
from utils.runtime import Machine
from utils.tables import markdown

BATCH_SIZE = 8  # faces at once
INSIDE = "the data set, which is never written to"


@dataclass(frozen=True)
class Rule:
    """Which training labels are replaced.

    threshold: where the most probable label's probability is above it, in [0, 1). rare: a label with a smaller share of
    the training pixels, in [0, 1], keeps its pixels whatever the parser says; 0: none does, as in the team's code.
    """

    threshold: float = 0.95
    rare: float = 0.01

    def keeps(self, pixels_K: np.ndarray) -> np.ndarray:
        """Which labels keep their pixels: bool (K,). pixels_K: how many of the training pixels have each."""
        return pixels_K < self.rare * pixels_K.sum()


def add_rule_options(cli: argparse._ActionsContainer) -> None:
    """``--threshold`` and ``--rare``, the fields of ``Rule``."""
    what = "probability above which a predicted label replaces the training label"
    cli.add_argument("--threshold", type=float, default=Rule.threshold, metavar="P", help=what)
    what = "labels with a smaller share of the training pixels are protected; 0: none"
    cli.add_argument("--rare", type=float, default=Rule.rare, metavar="SHARE", help=what)


def merge(probs_BKHW: Tensor, labels_BHW: Tensor, threshold: float, kept_K: Tensor) -> Tensor:
    """Label maps (uint8, B, H, W) with the most probable label where its probability is above the threshold, but for
    pixels whose own label is one of ``kept_K`` (bool) and for ignored ones (255)."""
    probability_BHW, ids_BHW = probs_BKHW.max(1)
    kept_256 = F.pad(kept_K, (0, NO_ID + 1 - len(kept_K)), value=True)
    replaced_BHW = (probability_BHW > threshold) & ~kept_256[labels_BHW.long()]
    return torch.where(replaced_BHW, ids_BHW.to(labels_BHW.dtype), labels_BHW)


def relabel(
    checkpoints: Sequence[Path], faces: Faces, folder: Path, rule: Rule, machine: Machine, batch_size: int = BATCH_SIZE
) -> dict[str, Any]:
    """Write ``<name>.png`` for each face into a folder, together with the other processes, and last the record.

    checkpoints: of a parser of the faces' own label set. faces: the training split. What an interrupted call with the
    same arguments has written is kept. Returns the record: what the maps come from, which labels kept their pixels,
    and how many pixels each label has before and after.
    Raises InputError for a folder that holds anything else, and where it cannot be written.
    """
    parser, labels = load_for_inference(checkpoints, machine.device), faces.data_labels
    before_K = faces.records["count"].sum(0)
    kept_K = rule.keeps(before_K)
    record = {
        "parser": parser.kind,
        "weights": [files.sha256(path) for path in checkpoints],
        "labels": labels.name,
        "data": faces.fingerprint,
        "faces": len(faces),
        **asdict(rule),
        "kept": [name for name, kept in zip(labels.names, kept_K, strict=True) if kept],
    }
    if distributed.rank() == 0:
        _claim(folder, record)
    distributed.barrier()
    paths = [folder / f"{name}.png" for name in faces.names]
    todo = [i for i in range(distributed.rank(), len(faces), distributed.world_size()) if not paths[i].is_file()]
    kept = torch.from_numpy(kept_K).to(machine.device)
    bar = tqdm(range(0, len(todo), batch_size), "relabel", disable=None if distributed.rank() == 0 else True)
    with ThreadPoolExecutor(machine.threads) as pool:
        for start in bar:
            chosen = todo[start : start + batch_size]
            batch = faces.collate([faces[i, (0, 0, i)] for i in chosen]).to(machine.device)
            with torch.inference_mode(), runtime.autocast(machine.device, machine.amp):
                probs_BKHW, _ = parser.probabilities(batch)
                probs_BKHW = probs_BKHW.float()
                probs_BKHW /= probs_BKHW.sum(1, keepdim=True)  # where windows overlap, the sum is more than 1
                merged_BHW = merge(probs_BKHW, batch.labels_BHW, rule.threshold, kept).cpu().numpy()
            maps = [ids_HW[:h, :w] for ids_HW, (h, w) in zip(merged_BHW, batch.sizes_B2.tolist(), strict=True)]
            list(pool.map(partial(_write, labels=labels), [paths[i] for i in chosen], maps))
    distributed.barrier()
    if distributed.rank() == 0:
        after_K, changed = np.zeros_like(before_K), 0
        for i, path in enumerate(paths):
            old_HW, new_HW = faces.ids(i), images.read_labels(path)
            if old_HW.shape != new_HW.shape or (new_HW[old_HW != NO_ID] >= len(labels)).any():
                raise InputError(f"{path} has changed since it was written: remove it and start again")
            after_K += np.bincount(new_HW.ravel(), minlength=len(labels))[: len(labels)]
            changed += int((old_HW != new_HW).sum())
        pixels = {name: [int(b), int(a)] for name, b, a in zip(labels.names, before_K, after_K, strict=True)}
        record |= {"changed": changed, "pixels before and after": pixels}
        _write_record(folder, record)
    distributed.barrier()
    return record


def table(record: dict[str, Any]) -> str:
    """Markdown: the share of each label before and after, and how much it gained."""
    pixels = record["pixels before and after"]
    total = sum(before for before, _ in pixels.values())
    rows = []
    for name, (before, after) in pixels.items():
        change = (after - before) / before if before else None
        rows.append([name, before / total, after / total, change, "yes" if name in record["kept"] else ""])
    return markdown(["label", "share before", "after", "change", "protected (rare)"], rows, 5)


def _claim(folder: Path, record: dict[str, Any]) -> None:
    """Note in an empty folder what its maps will come from; raises InputError for one that holds anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        _write_record(folder, record)
    elif not (folder / RECORD).is_file():
        raise InputError(f"{folder} is not empty, and its files are not replaced: choose a new folder")
    elif changed := distributed.difference(files.read_json(folder / RECORD, "record"), record):
        raise InputError(f"{folder} holds labels made with {changed}: choose a new folder")


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    files.write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def _write(path: Path, label_map: np.ndarray, labels: Any) -> None:
    files.write_bytes(path, encode_labels(np.ascontiguousarray(label_map), labels))
