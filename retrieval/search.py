"""Names the people of QUERIES by the nearest faces of GALLERY: aligned faces, one folder a person.

Writes predictions.txt, scores.json, a sheet of hits and misses, and the embeddings, which the next call with the same
--out takes again while checkpoint and faces are the same. GALLERY may also be such a file, gallery.npz.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from data.images import read_photo, shorten
from retrieval.index import INDEXES
from retrieval.network import InceptionResnetV1, load_network
from retrieval.people import People, list_people, read_crops, require_outside
from retrieval.ranking import NEAREST, Accuracy, Found, accuracy, directions, embed, ranked
from scoring import options
from scoring.pictures import encode, tile
from utils import files, locks
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import pick_device, run_main

SHOWN = 12  # queries on the sheet: half of them hits, half misses
CELL = 112  # side of a face on the sheet, pixels
GREEN, RED = (40, 200, 60), (220, 40, 40)


class Raw(nn.Module):
    """A baseline: the whitened pixels themselves."""

    def forward(self, faces_B3HW: torch.Tensor) -> torch.Tensor:
        flat_BN = faces_B3HW.flatten(1)
        return (flat_BN - flat_BN.mean(1, keepdim=True)) / flat_BN.std(1, keepdim=True).clamp(min=1e-3)


def network_of(name: str, device: torch.device) -> tuple[nn.Module, str]:
    """What embeds faces, and the name of its embeddings. name: a checkpoint, or "raw" or "untrained", the baselines.

    Raises InputError.
    """
    if name == "raw":
        return Raw(), name
    if name == "untrained":
        torch.manual_seed(0)
        return InceptionResnetV1().eval().requires_grad_(False).to(device), name
    network, digest = load_network(Path(name))
    return network.to(device), digest


class Embeddings(NamedTuple):
    """Faces of people. rows_NE: float32, of length 1. photos: fingerprint of the people's photos."""

    people: People
    rows_NE: np.ndarray
    photos: str


def embeddings_of(path: Path, cached: Path, network: nn.Module, key: str, device: torch.device) -> Embeddings:
    """The embeddings of a folder, from the file where they are its own, else made and written there.

    Raises InputError for a folder that cannot be used, and for embeddings that are not finite.
    """
    people = list_people(path)
    photos = people.fingerprint()
    with suppress(InputError):  # none yet, damaged, or of another checkpoint: made anew
        held = read_embeddings(cached, key)
        if held.photos == photos:
            return Embeddings(people, held.rows_NE, photos)
    rows_NE = embed(network, read_crops(people.files), device)
    if not np.isfinite(rows_NE).all():
        raise InputError(f"{path}: embeddings that are not finite: name another --checkpoint")
    paths = np.array([str(file.resolve()) for file in people.files])
    content: dict[str, Any] = {
        "names": np.array(people.names),
        "paths": paths,
        "labels": people.labels_N,
        "embeddings": rows_NE,
    }
    files.write_whole(cached, lambda file: np.savez(file, checkpoint=key, photos=photos, **content))
    return Embeddings(people, rows_NE, photos)


def read_embeddings(path: Path, key: str) -> Embeddings:
    """The embeddings of a file that a search wrote. key: SHA-256 of the checkpoint that they must be from.

    Raises InputError for a damaged file, and for embeddings of another checkpoint.
    """
    with files.open_regular(path, "file of embeddings") as file:
        try:
            files.check_zip(file, path, os.fstat(file.fileno()).st_size)  # we pack nothing
            with np.load(file, allow_pickle=False) as stored:
                held, photos = str(stored["checkpoint"]), str(stored["photos"])
                names_P, paths_N = (stored[name].astype(str) for name in ("names", "paths"))
                labels_N, rows_NE = stored["labels"], stored["embeddings"]
            sound = names_P.ndim == 1 and rows_NE.ndim == 2 and rows_NE.dtype == np.float32
            sound = sound and rows_NE.shape[:1] == labels_N.shape == paths_N.shape and labels_N.dtype == np.int64
            sound = sound and 0 <= labels_N.min() <= labels_N.max() < len(names_P)
            sound = sound and bool(np.abs(rows_NE).max() < 1.01)  # of length 1; false for NaN
        except Exception:  # NumPy and zipfile raise many kinds for damaged bytes
            sound = False
    if not sound:
        raise InputError(f"{path} is no file of embeddings, or a damaged one: name a folder of faces in its place")
    if held != key:
        raise InputError(
            f"{path} holds embeddings of another checkpoint ({held[:12]}, not {key[:12]}): name its folder of faces"
        )
    return Embeddings(People(tuple(names_P.tolist()), tuple(map(Path, paths_N.tolist())), labels_N), rows_NE, photos)


def predictions(found: Found, gallery: People, queries: People, scores: Accuracy) -> str:
    """The text of predictions.txt, in the form of the release: a line a query, then both shares, ended CR LF."""
    lines = []
    for k in range(len(queries)):
        near = (
            f"[{_shown(gallery.names[gallery.labels_N[row]])}, dist: {distance:.5f}]"
            for row, distance in zip(found.index_Q5[k], found.distances_Q5[k], strict=True)
        )
        lines.append(f"{_shown(queries.names[queries.labels_N[k]])} {' '.join(near)}")
    lines += [f"Top1 accuracy: {scores.top1:.6f} ", f"Top5 accuracy: {scores.top5:.6f} "]
    return "".join(f"{line}\r\n" for line in lines)


def _shown(name: str) -> str:
    return name.replace("_", " ")


def sheet(found: Found, gallery: People, queries: People) -> np.ndarray:
    """Hits, then misses: the query and its five nearest, framed green where the person is right. uint8 (H, W, 3)."""
    right_Q5 = np.array(
        [
            [gallery.names[gallery.labels_N[row]] == queries.names[queries.labels_N[k]] for row in rows]
            for k, rows in enumerate(found.index_Q5)
        ]
    )
    hits, misses = np.flatnonzero(right_Q5[:, 0]), np.flatnonzero(~right_Q5[:, 0])
    pictures = []
    for k in [*_spread(hits), *_spread(misses)]:
        pictures.append(read_photo(queries.files[k]))
        near = zip(found.index_Q5[k], right_Q5[k], strict=True)
        pictures += [_framed(read_photo(gallery.files[row]), GREEN if right else RED) for row, right in near]
    return tile(pictures, 1 + NEAREST, CELL)


def _spread(rows: np.ndarray) -> list[int]:
    """Half a sheet of the rows, evenly."""
    count = min(len(rows), SHOWN // 2)
    return rows[np.linspace(0, len(rows) - 1, count).astype(int)].tolist() if count else []


def _framed(photo_HW3: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    width = max(1, min(photo_HW3.shape[:2]) // 20)
    framed = photo_HW3.copy()
    for edge in (framed[:width], framed[-width:], framed[:, :width], framed[:, -width:]):
        edge[:] = colour
    return framed


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    cli.add_argument("gallery", type=Path, metavar="GALLERY", help="the people who are known")
    cli.add_argument("queries", type=Path, metavar="QUERIES", help="the people to name, each of them in GALLERY")
    cli.add_argument(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="best.pt of retrieval.train or the published file; raw (pixels) and untrained are baselines",
    )
    cli.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results and embeddings go")
    cli.add_argument("--index", choices=tuple(INDEXES), default="exact", help="exact search, or faiss's; see the docs")
    options.add_machine_options(cli)
    args = cli.parse_args(argv)
    options.check(args)
    for people in (args.gallery, args.queries):
        require_outside("--out", args.out, people)
    device = pick_device(args.device)
    network, key = network_of(args.checkpoint, device)
    with locks.one_run(args.out, "--out"):
        if args.gallery.is_file():
            gallery, known_GE, _ = read_embeddings(args.gallery, key)
        else:
            gallery, known_GE, _ = embeddings_of(args.gallery, args.out / "gallery.npz", network, key, device)
        if len(gallery) < NEAREST:
            raise InputError(f"{args.gallery} holds {len(gallery)} faces: {NEAREST} or more are needed, add people")
        queries, asked_QE, _ = embeddings_of(args.queries, args.out / "queries.npz", network, key, device)
        if strangers := sorted(set(queries.names) - set(gallery.names)):
            raise InputError(f"{args.queries}: people who are not in {args.gallery}: {shorten(strangers)}; remove them")
        if known_GE.shape[1] != asked_QE.shape[1]:
            sizes = f"{known_GE.shape[1]} and {asked_QE.shape[1]}"
            raise InputError(f"embeddings of {sizes} numbers do not compare: remove {args.out}, name folders of faces")
        mean_E = known_GE.mean(0)
        known_GE, asked_QE = directions(known_GE, mean_E), directions(asked_QE, mean_E)
        found = ranked(known_GE, asked_QE, INDEXES[args.index](known_GE)(asked_QE))
        scores = accuracy(found, gallery, queries)
        picture = Image.fromarray(sheet(found, gallery, queries))  # before anything is written: photos may have gone
        files.write_bytes(args.out / "predictions.txt", predictions(found, gallery, queries, scores).encode())
        files.write_bytes(args.out / "sheet.jpg", encode(picture, "JPEG", quality=90))
        result = {
            "top1": scores.top1,
            "top5": scores.top5,
            "people": len(gallery.names),
            "queries": len(queries),
            "gallery": len(gallery),
            "checkpoint": key,
            "index": args.index,
        }
        files.write_text(args.out / "scores.json", json.dumps(result, indent=1) + "\n")
    print(f"{len(queries)} queries, {len(gallery.names)} people: top-1 {scores.top1:.4f}, top-5 {scores.top5:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "interrupted (the same command goes on)"))
