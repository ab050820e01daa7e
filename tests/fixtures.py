"""Writes tiny data sets to disk in every layout, from faces drawn elsewhere, and tiny checkpoints.

``faces``: split (train, val, test) -> list of (name, photo uint8 (H, W, 3), labels uint8 (H, W) of HELEN's 11 ids).
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import nn

from data.batch import Batch
from data.cache import label_geometry, part_geometry
from data.images import make_image_256
from data.labels import CELEBAMASK, HELEN, NINE, LabelSet
from models.parser import FaceParser, WholeFaceParser
from models.stn_icnn.icnn import ICNN
from utils import checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent

Faces = dict[str, list[tuple[str, np.ndarray, np.ndarray]]]

HELEN_LISTS = {"train": "exemplars.txt", "val": "tuning.txt", "test": "testing.txt"}
ORIGINAL_NUMBERS = {"train": 0, "val": 170_000, "test": 190_000}  # inside CelebA's own splits
CELEBAMASK_NAMES = {
    "skin": "skin",
    "brow1": "r_brow",
    "brow2": "l_brow",
    "eye1": "r_eye",
    "eye2": "l_eye",
    "nose": "nose",
    "upper_lip": "u_lip",
    "inner_mouth": "mouth",
    "lower_lip": "l_lip",
    "hair": "hair",
}
# HELEN's 11 ids -> CelebAMask-HQ's 19
TO_CELEBAMASK = np.array([CELEBAMASK.names.index(CELEBAMASK_NAMES.get(n, n)) for n in HELEN.names], np.uint8)


def draw_face(size: int = 64, width: int | None = None, dx: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A block face: photo uint8 (size, width, 3) and labels uint8 (size, width) with all of HELEN's 11 ids."""
    width = width or size
    labels = np.zeros((size, width), np.uint8)
    boxes = (  # id, top, bottom, left, right in 64ths
        (10, 4, 16, 12, 52),
        (1, 12, 60, 14, 50),
        (2, 18, 21, 18, 28),
        (3, 18, 21, 36, 46),
        (4, 24, 28, 19, 27),
        (5, 24, 28, 37, 45),
        (6, 28, 40, 28, 36),
        (7, 44, 47, 24, 40),
        (8, 47, 50, 26, 38),
        (9, 50, 53, 24, 40),
    )
    for label, top, bottom, left, right in boxes:
        rows = slice(top * size // 64, bottom * size // 64)
        labels[rows, left * width // 64 + dx : right * width // 64 + dx] = label
    return np.stack([labels * 20, 255 - labels * 20, labels * 5 + 60], axis=2).astype(np.uint8), labels


def draw_faces(train: int = 3, val: int = 2, test: int = 1, size: int = 64) -> Faces:
    """Block faces for each split, named by numbers that no two splits share."""
    faces: Faces = {}
    number = 0
    for split, count in (("train", train), ("val", val), ("test", test)):
        faces[split] = []
        for _ in range(count):
            faces[split].append((str(number), *draw_face(size, dx=number % 3)))
            number += 1
    return faces


def save_photo(path: Path, photo: np.ndarray) -> None:
    Image.fromarray(photo).save(path, quality=95)


def save_palette(path: Path, ids: np.ndarray) -> None:
    picture = Image.fromarray(ids)
    picture.putpalette([(7 * i * j) % 256 for i in range(256) for j in (1, 3, 5)])
    picture.save(path)


def _pairs(
    root: Path, faces: Faces, photos: str = "images", masks: str = "labels"
) -> Iterator[tuple[str, str, np.ndarray, Path]]:
    """Writes the photos; split, name, labels and the file of the label map of each. photos, masks: their folders, in
    which {} is the split."""
    for split, group in faces.items():
        folders = [root / place.format(split) for place in (photos, masks)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for name, photo, labels in group:
            save_photo(folders[0] / f"{name}.jpg", photo)
            yield split, name, labels, folders[1] / f"{name}.png"


def _sided(labels: np.ndarray, first_is_left: bool) -> np.ndarray:
    """first_is_left: whether brow 1 and eye 1 lie on the image's left."""
    return labels if first_is_left else np.array(HELEN.mirror, np.uint8)[labels]


def _write_helen_lists(root: Path, faces: Faces) -> None:
    for split, name_of_list in HELEN_LISTS.items():
        lines = [f"{number} , {name}\n" for number, (name, *_) in enumerate(faces.get(split, []), 1)]
        (root / name_of_list).write_text("".join(lines))


def write_helen(root: Path, faces: Faces, first_is_left: bool = True) -> None:
    """HELEN's released layout: a soft mask for each label."""
    for _, name, labels, path in _pairs(root, faces):
        path.with_suffix("").mkdir()
        for label in range(len(HELEN.names)):
            mask = np.where(_sided(labels, first_is_left) == label, 200, 20).astype(np.uint8)
            Image.fromarray(mask).save(path.with_suffix("") / f"{name}_lbl{label:02d}.png")
    _write_helen_lists(root, faces)


def write_helen_merged(root: Path, faces: Faces, first_is_left: bool = True) -> None:
    """HELEN with one label map a face."""
    for _, _, labels, path in _pairs(root, faces):
        Image.fromarray(_sided(labels, first_is_left)).save(path)
    _write_helen_lists(root, faces)


def write_challenge(root: Path, faces: Faces) -> None:
    """CelebAMask-HQ in the challenge's layout, masks in palette mode as there."""
    for _, _, labels, path in _pairs(root, faces, "{0}/{0}_image", "{0}/{0}_mask"):
        save_palette(path, TO_CELEBAMASK[labels])


def write_lapa(root: Path, faces: Faces, first_is_left: bool = True) -> None:
    """LaPa's layout, landmarks and all."""
    for split, name, labels, path in _pairs(root, faces, "{}/images", "{}/labels"):
        Image.fromarray(_sided(labels, first_is_left)).save(path)
        (root / split / "landmarks").mkdir(exist_ok=True)
        (root / split / "landmarks" / f"{name}.txt").write_text("106\n" + "1.0 2.0\n" * 106)


def write_list(root: Path, faces: Faces, ids: np.ndarray | None = None) -> None:
    """Lists of pairs, ``images/x.jpg labels/x.png``; ids: what is stored in place of HELEN's 11."""
    lists = dict.fromkeys(faces, "")
    for split, name, labels, path in _pairs(root, faces):
        Image.fromarray(labels if ids is None else ids[labels]).save(path)
        lists[split] += f"images/{name}.jpg labels/{name}.png\n"
    for split, text in lists.items():
        (root / f"{split}_list.txt").write_text(text)


def write_celebamask_official(root: Path, faces: Faces, mapping: bool = True) -> None:
    """CelebAMask-HQ's official layout, photos twice as large as masks.

    Faces get the numbers 0, 1, 2, … mapping: write the file for the standard partition too; without it, all of them
    belong to the paper's train split.
    """
    photos, parts = root / "CelebA-HQ-img", root / "CelebAMask-HQ-mask-anno" / "0"
    photos.mkdir(parents=True)
    parts.mkdir(parents=True)
    originals: dict[int, int] = {}
    everybody = [(split, *face[1:]) for split, group in faces.items() for face in group]
    for number, (split, photo, labels) in enumerate(everybody):
        save_photo(photos / f"{number}.jpg", photo.repeat(2, axis=0).repeat(2, axis=1))
        for label, part in enumerate(HELEN.names[1:], 1):
            if (labels == label).any():
                mask = ((labels == label) * np.uint8(255))[:, :, None].repeat(3, axis=2)
                Image.fromarray(mask).save(parts / f"{number:05d}_{CELEBAMASK_NAMES[part]}.png")
        originals[number] = ORIGINAL_NUMBERS[split] + number
    if mapping:
        write_mapping(root, originals)


def write_mapping(root: Path, originals: dict[int, int]) -> None:
    """CelebAMask-HQ's file of the photos' numbers in CelebA."""
    rows = "".join(
        f"{number}           {original}        {original + 1:06d}.jpg\n" for number, original in originals.items()
    )
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("idx         orig_idx      orig_file\n" + rows)


def batch_of(faces: Sequence[tuple[np.ndarray, np.ndarray]], labels: LabelSet = NINE, first: int = 0) -> Batch:
    """Faces of any sizes, each a photo (H, W, 3) and its label map (H, W), keyed (0, 0, first), ..."""
    height, width = np.max([label_map.shape for _, label_map in faces], axis=0)

    def padded(images: Sequence[np.ndarray]) -> torch.Tensor:
        missing = [[(0, height - len(image)), (0, width - image.shape[1]), (0, 0)][: image.ndim] for image in images]
        return torch.from_numpy(np.stack([np.pad(*pair) for pair in zip(images, missing, strict=True)]))

    photos, maps = zip(*faces, strict=True)
    geometry = part_geometry(np.stack([label_geometry(label_map, len(labels)) for label_map in maps]), labels.part_ids)
    return Batch(
        labels,
        padded(photos),
        padded(maps),
        torch.from_numpy(np.stack([make_image_256(photo) for photo in photos])),
        torch.tensor([label_map.shape for label_map in maps]),
        *map(torch.from_numpy, geometry),
        index_B=torch.arange(first, first + len(faces)),
        keys_B3=torch.tensor([[0, 0, k] for k in range(first, first + len(faces))]),
    )


def names(folder: Path) -> list[str]:
    """What a folder holds, in order."""
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[Path, bytes]:
    """The files of a folder and of those in it."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def repainted(root: Path, folder: Path, *faces: str) -> Path:
    """A copy of HELEN's layout whose photos of these faces differ in some pixels and in nothing else, not in time."""
    shutil.copytree(root, folder)
    for path in (folder / "images" / f"{face}.jpg" for face in faces):
        stat, photo = path.stat(), np.array(Image.open(path))
        photo[:8, :8] = 128
        save_photo(path, photo)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return folder


def save_parser(
    path: Path, parser: FaceParser, stage: str = "end2end", networks: Sequence[str] = (), **more: Any
) -> Path:
    """A parser's networks, or some of them, as a checkpoint of a stage. more: entries beside or in place of its own."""
    checkpoint.save(path, state_of(parser, stage, *networks, **more))
    return path


@contextmanager
def another_run(folder: Path) -> Iterator[None]:
    """As long as it lasts, another run holds the lock of a run folder."""
    folder.mkdir(exist_ok=True)
    with FileLock(folder / ".lock"):
        yield


def python(*words: str, printed: IO[str] | None = None, **environment: str) -> subprocess.Popen[bytes]:
    """Start Python with these words in the repository. No fork of this process: a copy has its locks, but not the
    threads that hold them. printed: where its output goes, by default with ours."""
    return subprocess.Popen(
        [sys.executable, *words], cwd=REPOSITORY, env=os.environ | environment, stdout=printed, stderr=printed
    )


def status_of(process: subprocess.Popen[bytes]) -> int:
    """The exit status, negative that of a signal. Raises TimeoutExpired for a process that hangs, which is killed."""
    try:
        return process.wait(300)
    finally:
        process.kill()


def two_processes(*words: str, second: Sequence[str] = (), printed: IO[str] | None = None) -> list[int]:
    """Start Python twice, as torchrun would; ``second``: more words for the second process. Returns the exit
    statuses."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    alike = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        python(*words, *more, printed=printed, RANK=rank, LOCAL_RANK=rank, **alike)
        for rank, more in (("0", ()), ("1", second))
    ]
    return [status_of(process) for process in processes]


def lively(parser: FaceParser) -> FaceParser:
    """The parser, with random weights whose labels depend on the photo: fresh batch statistics would shrink every
    signal to nothing."""
    for module in parser.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        blocks_BHW3 = torch.randint(256, (8, 6, 6, 3), dtype=torch.uint8)
        parser.train()(blocks_BHW3.repeat_interleave(20, 1).repeat_interleave(20, 2))
        nets = [net for net in parser.modules() if isinstance(net, ICNN | WholeFaceParser)]
        for head in ([layer for layer in net.modules() if isinstance(layer, nn.Conv2d)][-1] for net in nets):
            head.weight *= 20
            head.bias.zero_()
    return parser.eval().requires_grad_(False)


def state_of(model: FaceParser, stage: str, *names: str, **more: Any) -> dict[str, Any]:
    """What a checkpoint holds of these networks of a parser, by default of all."""
    modules = {name: getattr(model, name).state_dict() for name in names or model.networks}
    about = {"stage": stage, "parser": model.kind, "labels": model.labels.name, "config": asdict(model.config)}
    return {**about, "modules": modules, **more}
