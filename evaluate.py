"""Score a face parser on a split, or any label maps in a folder: the paper's F1, the strict F1 and other measures."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data import images
from data.labels import CELEBAMASK, LABEL_SETS, NINE, NO_ID, LabelSet
from data.loaders import Faces, evaluation_batches, open_faces
from data.source import FaceData
from models.loading import load_for_inference
from models.parser import FaceParser
from models.stn_icnn.model import CROPS
from scoring import evaluation
from scoring.metrics import (
    CHALLENGE_FILES,
    Scores,
    all_classes,
    challenge_files,
    challenge_scores,
    classes_table,
    confusion_matrix,
    measures_table,
    scores,
    table,
    to_csv,
)
from scoring.pictures import colour, encode, face_pictures
from training import options
from utils import distributed, files, runtime
from utils.errors import InputError
from utils.runtime import Machine, run_main

BATCH_SIZE = 8
PICTURES = "[0-9]*_[01].[0-9]*_*.jpg"  # in worst/


@dataclass(frozen=True)
class Request:
    """Which parser is scored on which faces.

    checkpoints: files that hold the parser between them, see ``models.loading``. data, split: the faces.
    crops: for STN-iCNN, where its windows come from, one of ``models.stn_icnn.model.CROPS``. mirror: test-time
    mirroring. batch_size: faces at once, over all processes.
    """

    checkpoints: Sequence[Path]
    data: FaceData
    machine: Machine
    split: str = "test"
    crops: str = "predicted"
    mirror: bool = False
    batch_size: int = BATCH_SIZE


class Evaluation(NamedTuple):
    """Scored faces: one row of the tables.

    title: the row's name. about: what was scored, as plain values for scores.json. labels: the label set of the scores.
    names: of the N faces. matrices_NKK: int64, one confusion matrix (rows: truth) for each face.
    picture: index of a face -> [photo |] prediction | truth, uint8 (H, W, 3).
    """

    title: str
    about: dict[str, Any]
    labels: LabelSet
    names: list[str]
    matrices_NKK: np.ndarray
    picture: Callable[[int], np.ndarray]

    def scores(self) -> Scores:
        """The scores of all faces together, see ``scoring.metrics.scores``."""
        return scores(self.matrices_NKK.sum(0), self.labels)

    def challenge(self) -> bool:
        """Whether the faces are scored in the labels of the CelebAMask challenge."""
        return self.labels is CELEBAMASK


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    machine = options.machine(args)
    distributed.start_processes(args.device)
    torch.manual_seed(args.seed)
    with distributed.told_when_lost():
        evaluation = score(args, machine)
    if distributed.rank() > 0:
        return 0
    print(f"{tables(evaluation)}\n{len(evaluation.names)} faces")
    if absent := evaluation.scores()["absent"]:
        print(f"without a score, since neither in the truth nor predicted: {', '.join(absent)}")
    if args.out:
        result = save(args.out, evaluation, args.worst)
        pictures = f", worst/ ({len(result['worst'])})" if result["worst"] else ""
        challenge = "".join(f", {name}" for name in CHALLENGE_FILES if evaluation.challenge())
        print(f"written: {args.out / 'scores.json'}, scores.csv, scores.md{challenge}{pictures}")
    return 0


def score(args: argparse.Namespace, machine: Machine) -> Evaluation:
    """What the options ask for. Raises InputError, see ``score_folders`` and ``score_model``."""
    if args.predictions:
        ids, truth_ids = LABEL_SETS[args.ids], LABEL_SETS[args.truth_ids]
        labels = LABEL_SETS[args.labels or NINE.name]
        return score_folders(args.predictions, args.truth, ids, truth_ids, machine, args.max_images, labels)
    paths, data = options.checkpoints(args), options.face_data(args)
    return score_model(Request(paths, data, machine, args.split, args.crops, args.mirror, args.batch_size))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    parser = options.base_parser(__doc__, splits=True, batch_size=BATCH_SIZE)
    group = parser.add_argument_group("what is scored")
    options.add_checkpoint_option(group)
    group.add_argument(
        "--crops",
        choices=CROPS,
        default="predicted",
        help="for STN-iCNN: windows from the localizer, from the old cropper, or around the true parts; "
        "none: the enlarged rough mask",
    )
    options.add_mirror_option(group)
    group.add_argument(
        "--predictions", type=Path, metavar="DIR", help="score these label PNGs of any parser instead of a checkpoint"
    )
    group.add_argument("--truth", type=Path, metavar="DIR", help="true label PNGs with the same stems and sizes")
    group.add_argument("--ids", choices=tuple(LABEL_SETS), default=NINE.name, help="label set of --predictions")
    group.add_argument("--truth-ids", choices=tuple(LABEL_SETS), help="label set of --truth; default: that of --ids")
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder for scores.json, scores.csv and scores.md")
    group.add_argument("--overwrite", action="store_true", help="replace the scores in --out")
    group.add_argument("--worst", type=int, default=0, metavar="N", help="also save pictures of the N worst faces")
    args = parser.parse_args(argv)
    options.check(args)
    if (args.predictions is None) != (args.truth is None):
        raise InputError("--predictions and --truth belong together: name both folders")
    of_parsers = {"checkpoint": args.checkpoint, "mirror": args.mirror, "crops": args.crops != "predicted"}
    of_parsers |= {name: getattr(args, name) for name in ("data", "partition", "face_size")}
    if args.predictions and (unused := [f"--{name.replace('_', '-')}" for name, given in of_parsers.items() if given]):
        raise InputError(f"--predictions are scored as they are: leave out {', '.join(unused)}")
    if not args.predictions and (args.truth_ids or args.ids != NINE.name):
        raise InputError("--ids and --truth-ids say what --predictions hold: leave them out")
    if args.worst < 0:
        raise InputError(f"--worst {args.worst}: must be at least 0")
    if args.worst and not args.out:
        raise InputError("--worst saves pictures in --out DIR: name one")
    if args.out and not args.overwrite and (there := written_before(args.out)):
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        first = there[0].relative_to(args.out)
        raise InputError(f"{args.out} already holds {first}{more}: name another --out, or add --overwrite")
    args.truth_ids = args.truth_ids or args.ids
    return args


def score_model(request: Request) -> Evaluation:
    """Load a parser and score it on a split, together with the other processes.

    Raises InputError for checkpoints, options or faces that cannot be used.
    """
    machine, data = request.machine, request.data
    parser = load_for_inference(request.checkpoints, machine.device, request.crops, request.mirror, amp=machine.amp)
    faces = open_faces(data, request.split, parser.labels, threads=machine.threads)
    asked = describe(request, faces)
    distributed.require_same({**asked, "images": len(faces), "amp": machine.amp})

    def picture(index: int) -> np.ndarray:
        batch = faces.collate([faces[index, (0, 0, index)]]).to(machine.device)
        with torch.inference_mode(), runtime.autocast(machine.device, machine.amp):
            parsed = parser.parse(batch)
        (predicted,) = face_pictures(batch, *parsed)
        (true,) = face_pictures(batch, batch.labels_BHW)
        return np.hstack([faces.photo(index), predicted, true])

    about = {
        **asked,
        "checkpoint": ", ".join(map(str, request.checkpoints)),
        "device": str(machine.device),
        "amp": machine.amp,
    }
    title = runtime.printable(f"{' + '.join(path.stem for path in request.checkpoints)}, crops {request.crops}")
    matrices_NKK = score_faces(parser, faces, machine, request.batch_size)
    return Evaluation(title, about, parser.labels, faces.names, matrices_NKK, picture)


def describe(request: Request, faces: Faces) -> dict[str, Any]:
    """What scores.json says of the weights, the faces and the way they are scored, by which old scores are known again.

    faces: those of the request, in any label set.
    """
    data = request.data
    return {
        "dataset": data.dataset,
        "partition": data.partition,
        "face_size": data.face_size,
        "max_images": data.max_images,
        "split": request.split,
        "data": faces.fingerprint,
        "crops": request.crops,
        "mirror": request.mirror,
        "sha256": [files.sha256(path) for path in request.checkpoints],
    }


def score_faces(parser: FaceParser, faces: Faces, machine: Machine, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Label every face, each process its share, and compare: matrices_NKK, int64, of all faces, on every process.

    faces: in the label set of the parser. batch_size: faces at once, over all processes.
    """
    rank, world = distributed.rank(), distributed.world_size()
    batches = evaluation_batches(faces, batch_size, rank, world, machine.workers)
    bar = tqdm(batches, desc=f"{faces.split} split", disable=None if rank == 0 else True, leave=False)
    with torch.inference_mode(), runtime.autocast(machine.device, machine.amp):
        index_N, matrices_NKK = evaluation.evaluate(parser.label, bar, machine.device, len(parser.labels))
    return gather(index_N, matrices_NKK, len(faces), machine.device)


def score_folders(
    predictions: Path,
    truth: Path,
    ids: LabelSet,
    truth_ids: LabelSet,
    machine: Machine,
    max_images: int | None = None,
    labels: LabelSet = NINE,
) -> Evaluation:
    """Compare two folders of label PNGs, together with the other processes, in the label set ``labels``.

    ids, truth_ids: their own label sets. max_images: the first so many, default all.
    Raises InputError that lists what does not pair, and for ids that do not exist.
    """
    pairs = pair_folders(predictions, truth)[:max_images]
    names = [name for name, _, _ in pairs]
    distributed.require_same({"pairs": len(pairs), "names": names, "ids": ids.name, "truth_ids": truth_ids.name})
    lut, truth_lut = ids.map_to(labels), truth_ids.map_to(labels)

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        _, pred, true = pairs[index]
        return read_mapped(pred, ids, lut), read_mapped(true, truth_ids, truth_lut)

    def count(index: int) -> np.ndarray:
        return confusion_matrix(*read(index), len(labels))

    own = range(distributed.rank(), len(pairs), distributed.world_size())
    with ThreadPoolExecutor(machine.threads) as pool:
        matrices = list(pool.map(count, own))
    matrices_NKK = torch.from_numpy(np.array(matrices, np.int64).reshape(-1, len(labels), len(labels)))
    about = {
        "dataset": None,
        "partition": None,
        "face_size": None,
        "split": None,
        "crops": None,
        "checkpoint": None,
        "predictions": str(predictions),
        "truth": str(truth),
    }

    def picture(index: int) -> np.ndarray:
        return np.hstack([colour(label_map, labels) for label_map in read(index)])

    whole_NKK = gather(torch.tensor(list(own), dtype=torch.long), matrices_NKK, len(pairs), machine.device)
    return Evaluation(runtime.printable(predictions.resolve().name), about, labels, names, whole_NKK, picture)


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


def read_mapped(path: Path, labels: LabelSet, lut: np.ndarray) -> np.ndarray:
    """A label map in the ids that ``lut`` maps to, uint8 (H, W). Raises InputError for ids that do not exist."""
    stored = images.read_labels(path)
    mapped = lut[stored]
    unknown = np.unique(stored[mapped == NO_ID])
    if unknown.size:
        raise InputError(f"{path} holds ids that {labels.name} does not have: {images.shorten(map(str, unknown))}")
    return mapped


def gather(index_N: Tensor, matrices_NKK: Tensor, count: int, device: torch.device) -> np.ndarray:
    """Every face's confusion matrix, from all processes: int64 (count, K, K).

    index_N, matrices_NKK: this process's faces and their matrices, on the CPU. device: where processes exchange data.
    """
    whole_NKK = torch.zeros(count, *matrices_NKK.shape[1:], dtype=torch.long)
    whole_NKK[index_N] = matrices_NKK
    return distributed.sum_over_processes(whole_NKK.to(device)).cpu().numpy()


def worst_faces(evaluation: Evaluation, count: int) -> list[tuple[int, float]]:
    """(index, strict mean F1) of the faces with the lowest; a face without any label, true or predicted, scores 1."""
    if not count:
        return []
    means = [scores(matrix_KK, evaluation.labels)["strict"]["mean"] for matrix_KK in evaluation.matrices_NKK]
    filled = [(index, 1.0 if mean is None else mean) for index, mean in enumerate(means)]
    return sorted(filled, key=lambda item: item[1])[:count]


def tables(evaluation: Evaluation) -> str:
    """The row's F1 tables and that of the other measures, in Markdown."""
    result, labels = evaluation.scores(), evaluation.labels
    found = f"{table({evaluation.title: result}, labels)}\n{measures_table(result, labels)}"
    return found if labels.groups else f"{found}\n{classes_table(evaluation.matrices_NKK.sum(0), labels)}"


def save(out: Path, evaluation: Evaluation, worst: int = 0) -> dict[str, Any]:
    """Write scores.csv, scores.md, worst/*.jpg and, last, scores.json into a folder; returns what scores.json holds.

    For the labels of the CelebAMask challenge, also the score files of one of its teams.
    worst: of so many faces, those with the lowest scores, pictures are saved. Raises InputError where the folder cannot
    be written.
    """
    result, total_KK = evaluation.scores(), evaluation.matrices_NKK.sum(0)
    ranked = worst_faces(evaluation, worst)
    found = all_classes(total_KK, evaluation.labels)
    whole = {
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
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.write_text(out / "scores.csv", to_csv({evaluation.title: result}, evaluation.labels))
        files.write_text(out / "scores.md", tables(evaluation))
        if evaluation.challenge():
            for name, text in challenge_files(total_KK).items():
                files.write_text(out / name, text)
        save_pictures(out / "worst", evaluation, ranked)
        files.write_text(out / "scores.json", json.dumps(whole, indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--out {out} could not be written ({error.strerror or error})") from error
    return whole


def written_before(out: Path) -> list[Path]:
    """What a folder holds of the files that ``save`` writes or removes."""
    names = ("scores.json", "scores.csv", "scores.md", *CHALLENGE_FILES)
    scores = [path for name in names if os.path.lexists(path := out / name)]
    return scores + sorted((out / "worst").glob(PICTURES))


def save_pictures(folder: Path, evaluation: Evaluation, ranked: Sequence[tuple[int, float]]) -> None:
    """The pictures of these faces, in place of an earlier call's. Raises OSError."""
    for old in folder.glob(PICTURES):
        old.unlink()
    if ranked:
        folder.mkdir(exist_ok=True)
    for place, (index, mean) in enumerate(ranked, 1):
        name = os.fsdecode(os.fsencode(evaluation.names[index])[:200])  # with the rest no longer than disks allow
        path = folder / f"{place:03d}_{mean:.4f}_{name}.jpg"
        picture = Image.fromarray(evaluation.picture(index))
        files.write_bytes(path, encode(picture, "JPEG", quality=92))


if __name__ == "__main__":
    sys.exit(run_main(main))
