"""Scoring: faces or folders of label maps -> one confusion matrix for each face."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import images
from data.datasets import merged
from data.labels import CELEBAMASK, HELEN, LAPA, NINE, NO_ID, LabelSet
from data.listing import Sample
from data.loaders import Faces, evaluation_batches, open_faces
from data.source import FaceData
from models.loading import load_for_inference
from models.parser import FaceParser
from scoring.metrics import Scores, confusion_matrices, confusion_matrix, scores
from scoring.pictures import colour, face_pictures
from utils import distributed, files, runtime
from utils.errors import InputError
from utils.runtime import Machine

BATCH_SIZE = 8  # faces at once


@dataclass(frozen=True)
class Request:
    """Which parser is scored on which faces.

    checkpoints: files, see ``models.loading.load_parser``. data, split: the faces.
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
        return self.labels == CELEBAMASK


def evaluate(
    label: Callable[[Any], Tensor], batches: Iterable[Any], device: torch.device, num_labels: int
) -> tuple[Tensor, Tensor]:
    """Label every face on its own photo's grid and count.

    label: batch -> labels_BHW (uint8). Returns (index_N, matrices_NKK) on the CPU: position of each face in the split
    and its int64 confusion matrix (rows: truth); over all processes the matrices' sum is the data set's.
    Raises ValueError for ids that the label set does not have.
    """
    index, matrices, invalid = [], [], []
    for batch in batches:
        batch = batch.to(device)
        labels_BHW = label(batch)
        known_BHW = labels_BHW.clamp(max=num_labels - 1)  # others would index out of bounds: an error below
        index.append(batch.index_B)
        matrices.append(confusion_matrices(known_BHW, batch.labels_BHW, batch.sizes_B2, num_labels))
        invalid.append((labels_BHW != known_BHW).sum())
    if not matrices:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, num_labels, num_labels, dtype=torch.long)
    if wrong := int(torch.stack(invalid).sum()):
        raise ValueError(f"{wrong} pixels hold ids that are not 0..{num_labels - 1}")
    return torch.cat(index).cpu(), torch.cat(matrices).cpu()


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
    batches = evaluation_batches(faces, batch_size, rank, world, machine)
    bar = tqdm(batches, desc=f"{faces.split} split", disable=None if rank == 0 else True, leave=False)
    with torch.inference_mode(), runtime.autocast(machine.device, machine.amp):
        index_N, matrices_NKK = evaluate(
            lambda batch: parser.parse(batch).labels_BHW, bar, machine.device, len(parser.labels)
        )
    return gather(index_N, matrices_NKK, len(faces))


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

    ids, truth_ids: their own label sets, of the latter ``ignores`` too; which side is left in the ids of HELEN and LaPa
    is settled by reading, for each folder, as in their data sets. max_images: the first so many, default all.
    Raises InputError that lists what does not pair, and for ids that do not exist.
    """
    pairs = pair_folders(predictions, truth)[:max_images]
    names = [name for name, _, _ in pairs]
    distributed.require_same({"pairs": len(pairs), "names": names, "ids": ids.name, "truth_ids": truth_ids.name})
    preds, truths = ([Sample("", Path(), (paths[side],)) for _, *paths in pairs] for side in (0, 1))
    lut, truth_lut = _lut(ids, labels, preds, predictions), _lut(truth_ids, labels, truths, truth)

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        _, pred, true = pairs[index]
        return read_mapped(pred, replace(ids, ignores=False), lut), read_mapped(true, truth_ids, truth_lut)

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

    all_NKK = gather(torch.tensor(list(own), dtype=torch.long), matrices_NKK, len(pairs))
    return Evaluation(runtime.printable(predictions.resolve().name), about, labels, names, all_NKK, picture)


def _lut(ids: LabelSet, labels: LabelSet, samples: list[Sample], folder: Path) -> np.ndarray:
    """Stored id -> id of ``labels``, uint8 (256,), see ``LabelSet.map_to``."""
    lut = ids.map_to(labels)
    try:
        swapped = ids in (HELEN, LAPA) and merged.is_swapped(samples, ids, folder)
    except InputError:  # brows and eyes disagree: the scores tell
        swapped = False
    if swapped:
        lut[: len(ids)] = lut[list(ids.mirror)]
    return lut


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
    unknown = np.unique(stored[(mapped == NO_ID) & (not labels.ignores or stored != NO_ID)])
    if unknown.size:
        raise InputError(f"{path} holds ids that {labels.name} does not have: {images.shorten(map(str, unknown))}")
    return mapped


def gather(index_N: Tensor, matrices_NKK: Tensor, count: int) -> np.ndarray:
    """Every face's confusion matrix, from all processes: int64 (count, K, K).

    index_N, matrices_NKK: this process's faces and their matrices, on the CPU.
    """
    all_NKK = torch.zeros(count, *matrices_NKK.shape[1:], dtype=torch.long)
    all_NKK[index_N] = matrices_NKK
    return distributed.sum_over_processes(all_NKK).numpy()
