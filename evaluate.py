"""Scores of a model on a split, or of any parser's label maps in a folder: the paper's table and the strict one."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data import images
from data.labels import LABELS, TABLES
from data.loading import evaluation_batches
from models.pretrained import MODULES, load_for_inference
from utils import engine, options, runtime
from utils.errors import InputError
from utils.metrics import Scores, confusion_matrix, scores, table, to_csv
from utils.parsing import CROPS, face_pictures, label_batch, label_maps
from utils.runtime import run_main
from utils.visualize import colour

# What each kind of crops needs of the model.
NEEDED = {"predicted": MODULES, "baseline": ("coarse", "parts"), "truth": ("parts",), "none": ("coarse",)}
IDS = ("nine", "helen", "celebamask")


class Evaluation(NamedTuple):
    """One row of the tables.

    title: the row's name. about: what was scored, plain values. names: of the faces. matrices_N99: int64, one
    confusion matrix (rows: truth) for each. picture: index of a face -> [photo |] prediction | truth, uint8 (H, W, 3).
    """

    title: str
    about: dict[str, Any]
    names: list[str]
    matrices_N99: np.ndarray
    picture: Callable[[int], np.ndarray]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    device = runtime.pick_device(args.device)
    runtime.start_processes(args.device)
    torch.manual_seed(args.seed)
    evaluation = score_folders(args, device) if args.predictions else score_model(args, device)
    if runtime.rank() > 0:
        return 0
    result = scores(evaluation.matrices_N99.sum(0))
    text = table({evaluation.title: result}) + "\n" + measures_table(result)
    print(text + f"\n{len(evaluation.names)} faces")
    if result["absent"]:
        print(f"neither in the truth nor predicted, hence without a score: {', '.join(result['absent'])}")
    if args.out:
        try:
            write(args.out, evaluation, result, text, args.worst)
        except OSError as error:
            raise InputError(f"--out {args.out} could not be written ({error.strerror or error})") from error
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    parser = options.base_parser(__doc__, splits=True, batch_size=8)
    group = parser.add_argument_group("what is scored")
    options.add_checkpoint_option(group)
    group.add_argument(
        "--crops",
        choices=CROPS,
        default="predicted",
        help="windows from the localizer, from the old cropper, around the true parts; none: the enlarged rough mask",
    )
    options.add_mirror_option(group)
    group.add_argument("--predictions", type=Path, metavar="DIR", help="instead of a model: label PNGs of any parser")
    group.add_argument("--truth", type=Path, metavar="DIR", help="the true label PNGs, of the same stems and sizes")
    group.add_argument("--ids", choices=IDS, default="nine", help="what the ids in --predictions mean")
    group.add_argument("--truth-ids", choices=IDS, help="what those in --truth mean, if something else")
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="DIR", help="where scores.json, scores.csv and scores.md go")
    group.add_argument("--overwrite", action="store_true", help="replace the scores that lie in --out")
    group.add_argument("--worst", type=int, default=0, metavar="N", help="also draw the N worst faces into --out")
    args = parser.parse_args(argv)
    options.check(args)
    if (args.predictions is None) != (args.truth is None):
        raise InputError("--predictions and --truth belong together: name both folders")
    if args.predictions and (args.checkpoint or args.data):
        raise InputError("--predictions are scored without a model or a data set: leave out --checkpoint and --data")
    if args.worst < 0:
        raise InputError(f"--worst {args.worst}: must be at least 0")
    if args.worst and not args.out:
        raise InputError("--worst draws into --out DIR: name one")
    if args.out and not args.overwrite and (args.out / "scores.json").exists():
        raise InputError(f"{args.out} already holds scores.json: name another --out, or add --overwrite")
    if args.out and args.out.exists() and not args.out.is_dir():
        raise InputError(f"--out {args.out} is a file: name a folder")
    return args


def score_model(args: argparse.Namespace, device: torch.device) -> Evaluation:
    """Label every face of the split with the model, this process its share of them."""
    paths = options.checkpoints(args)
    model = load_for_inference(paths, device, NEEDED[args.crops], args.mirror)
    faces = options.open_split(args, args.split)
    batches = evaluation_batches(faces, args.batch_size, runtime.rank(), runtime.world_size(), args.workers)
    bar = tqdm(batches, desc=f"{args.dataset} {args.split}", disable=None if runtime.rank() == 0 else True, leave=False)
    with torch.inference_mode(), runtime.autocast(device, args.amp):
        index_N, matrices_N99 = engine.evaluate(lambda batch: label_batch(model, batch, args.crops), bar, device)

    def picture(index: int) -> np.ndarray:
        batch = faces.collate([faces[index, (0, 0, index)]]).to(device)
        with torch.inference_mode(), runtime.autocast(device, args.amp):
            if args.crops == "none":
                labels_BHW, theta_BP23 = label_batch(model, batch, "none"), None
            else:
                labels_BHW, theta_BP23 = label_maps(model, batch, args.crops)
        (predicted,) = face_pictures(batch, labels_BHW, theta_BP23)
        (true,) = face_pictures(batch, batch.labels_BHW)
        return np.hstack([faces.photo(index), predicted, true])

    about = {
        "dataset": args.dataset,
        "partition": args.partition,
        "face_size": args.face_size,
        "split": args.split,
        "crops": args.crops,
        "mirror": args.mirror,
        "checkpoint": ", ".join(map(str, paths)),
        "device": str(device),
        "amp": args.amp,
    }
    title = f"{' + '.join(path.stem for path in paths)}, crops {args.crops}"
    return Evaluation(title, about, faces.names, gather(index_N, matrices_N99, len(faces), device), picture)


def score_folders(args: argparse.Namespace, device: torch.device) -> Evaluation:
    """Compare two folders of label PNGs, this process its share. Raises InputError listing what does not pair."""
    pairs = pair_folders(args.predictions, args.truth)[: args.max_images]
    luts = [np.where(np.arange(256) < len(LABELS), np.arange(256), 255).astype(np.uint8)]
    luts += [TABLES[name].merge for name in IDS[1:]]
    lut_of = dict(zip(IDS, luts, strict=True))
    pred_ids, truth_ids = args.ids, args.truth_ids or args.ids

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        _, pred, truth = pairs[index]
        return read_nine(pred, pred_ids, lut_of[pred_ids]), read_nine(truth, truth_ids, lut_of[truth_ids])

    mine = range(runtime.rank(), len(pairs), runtime.world_size())
    with ThreadPoolExecutor(options.threads(args.workers)) as pool:
        matrices = list(pool.map(lambda index: confusion_matrix(*read(index)), mine))
    matrices_N99 = torch.from_numpy(np.array(matrices, np.int64).reshape(-1, len(LABELS), len(LABELS)))
    about = {
        "dataset": None,
        "partition": None,
        "face_size": None,
        "split": None,
        "crops": None,
        "checkpoint": None,
        "predictions": str(args.predictions),
        "truth": str(args.truth),
    }
    names = [name for name, _, _ in pairs]
    every_N99 = gather(torch.tensor(list(mine), dtype=torch.long), matrices_N99, len(pairs), device)

    def picture(index: int) -> np.ndarray:
        return np.hstack([colour(labels) for labels in read(index)])

    return Evaluation(args.predictions.resolve().name, about, names, every_N99, picture)


def pair_folders(predictions: Path, truth: Path) -> list[tuple[str, Path, Path]]:
    """(stem, prediction, truth) of every pair. Raises InputError listing files without a partner or of other sizes."""
    preds, truths = (images.list_files(folder, images.MASK_SUFFIXES) for folder in (predictions, truth))
    for folder, found in ((predictions, preds), (truth, truths)):
        if not found:
            raise InputError(f"no label PNGs in {folder}")
    problems = []
    for folder, lost in ((predictions, truths.keys() - preds.keys()), (truth, preds.keys() - truths.keys())):
        if lost:
            problems.append(f"{folder} lacks {images.shorten(f'{name}.png' for name in sorted(lost))}")
    pairs = [(name, path, truths[name]) for name, path in preds.items() if name in truths]
    differ = [path.name for _, path, true in pairs if images.read_size(path) != images.read_size(true)]
    if differ:
        problems.append(f"sizes differ between {predictions} and {truth}: {images.shorten(differ)}")
    if problems:
        raise InputError("; ".join(problems))
    return pairs


def read_nine(path: Path, ids: str, lut: np.ndarray) -> np.ndarray:
    """A label map merged into the nine labels. Raises InputError for ids that do not exist."""
    stored = images.read_labels(path)
    labels = lut[stored]
    unknown = np.unique(stored[labels == 255])
    if unknown.size:
        raise InputError(f"{path} holds ids that {ids} does not have: {images.shorten(map(str, unknown))}")
    return labels


def gather(index_N: Tensor, matrices_N99: Tensor, count: int, device: torch.device) -> np.ndarray:
    """Every face's confusion matrix, from all processes: int64 (count, 9, 9)."""
    every_N99 = torch.zeros(count, *matrices_N99.shape[1:], dtype=torch.long)
    every_N99[index_N] = matrices_N99
    return runtime.sum_over_processes(every_N99.to(device)).cpu().numpy()


def measures_table(result: Scores) -> str:
    """IoU, precision and recall of the eight labels and their mean, in Markdown."""
    columns = [*LABELS[1:], "mean"]
    lines = [f"| all labels | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for measure, title in (("iou", "IoU"), ("precision", "precision"), ("recall", "recall")):
        cells = ["–" if (value := result[measure][name]) is None else f"{value:.4f}" for name in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def worst_faces(matrices_N99: np.ndarray, count: int) -> list[tuple[int, float]]:
    """(index, strict mean F1) of the faces with the lowest; a face without any label, true or predicted, scores 1."""
    means = [scores(matrix_99)["strict"]["mean"] for matrix_99 in matrices_N99]
    filled = [(index, 1.0 if mean is None else mean) for index, mean in enumerate(means)]
    return sorted(filled, key=lambda item: item[1])[:count]


def write(out: Path, evaluation: Evaluation, result: Scores, text: str, worst: int) -> None:
    """scores.csv, scores.md, worst/*.jpg and, last, scores.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.csv").write_text(to_csv({evaluation.title: result}))
    (out / "scores.md").write_text(text)
    ranked = worst_faces(evaluation.matrices_N99, worst) if worst else []
    for old in (out / "worst").glob("[0-9]*_[01].[0-9]*_*.jpg"):
        old.unlink()
    if ranked:
        (out / "worst").mkdir(exist_ok=True)
    for place, (index, mean) in enumerate(ranked, 1):
        picture = Image.fromarray(evaluation.picture(index))
        picture.save(out / "worst" / f"{place:03d}_{mean:.4f}_{evaluation.names[index]}.jpg", quality=92)
    whole = {
        **result,
        "images": len(evaluation.names),
        **evaluation.about,
        "confusion": evaluation.matrices_N99.sum(0).tolist(),
        "worst": [{"name": evaluation.names[index], "strict_mean": mean} for index, mean in ranked],
    }
    partial = out / "scores.json.tmp"
    partial.write_text(json.dumps(whole, indent=1) + "\n")
    os.replace(partial, out / "scores.json")
    print(f"written: {out / 'scores.json'}, scores.csv, scores.md" + (f", worst/ ({len(ranked)})" if ranked else ""))


if __name__ == "__main__":
    sys.exit(run_main(main))
