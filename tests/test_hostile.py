"""Hostile input to every script: one line and an exit status, no traceback, no hang, and no file changed.

Every case is made on the spot (``tests.damage``) and runs in a process of its own under a time limit
(``tests.hostile``). What is promised: exit status 2 and one line ``error: …``; ``predict`` says ``failed: …`` for each
photo that it could not label and goes on with the others (status 1), as ``tools.check`` does with what it checks.
"""

import hashlib
import json
import os
import re
import shutil
import socketserver
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.datasets import celebamask, helen
from experiments.report import EXPERIMENTS
from tests import damage
from tests.fixtures import draw_face, draw_faces, save_palette, write_celebamask_official, write_challenge
from tests.hostile import NAMES, SECONDS, Call, Ended, Scripts, case_folder, snapshot
from tests.test_evaluate import save_models
from tests.test_report import write_run
from utils import checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a forked process")

LONGEST = 500  # letters of a line on stderr, names of files aside
MACHINE = ("--device", "cpu", "--amp", "off", "--workers", "0")
CPU = ("--device", "cpu", "--amp", "off")
TRAINING = (*MACHINE, "--epochs", "1", "--batch-size", "2", "--max-images", "2", "--cache", "cache", "--run-dir", "run")
SMALL = ("--face-size", "32")
RESULTS = Path(__file__).resolve().parent.parent / "results"


class Kit:
    """Good files that the cases damage. scripts: see ``tests.hostile``. port: of a server, see ``RESPONSES``."""

    def __init__(self, root: Path, helen_root: Path, scripts: Scripts, port: int) -> None:
        self.root, self.helen, self.scripts, self.port = root, helen_root, scripts, port
        self.weights = {stage: Path(path) for stage, path in save_models(root).items()}
        self.faces, self.official = root / "faces", root / "official"
        write_challenge(self.faces, draw_faces(train=2, val=1, test=1))
        write_celebamask_official(self.official, draw_faces(train=1, val=1, test=1))
        self.big = root / "big.jpg"
        Image.new("L", (12_000, 12_000), 99).save(self.big, "JPEG")
        options = [*MACHINE, "--dataset", "celebamask", "--data", "faces", "--cache", "cache", "--batch-size", "2"]
        self.must_run("train_stage1", *options, "--epochs", "2", "--coarse-size", "16", "--run-dir", "run")
        state = damage.load(root / "run" / "last.pt")
        checkpoint.save(root / "run" / "last.pt", {**state, "epoch": 0, "best": {**state["best"], "epoch": 0}})
        sizes = ["--coarse-size", "16", "--crop-size", "9", "--recipe", "best", "--epochs", "1", "1", "1", "1"]
        self.must_run("reproduce", *options, *sizes, "--out", "chain")
        resume = [*options, "--epochs", "2", "--coarse-size", "16", "--run-dir", "run", "--resume"]
        self.words = {(RESUMING,): resume, (USED,): resume[:-1], (AGAIN,): [*options, *sizes, "--out", "chain"]}

    def must_run(self, script: str, *arguments: str) -> None:
        ended = self.scripts.run(Call(script, list(arguments), str(self.root), seconds=300))
        assert ended.status == 0, ended.stderr

    def copy(self, name: str, folder: Path) -> Path:
        """A folder of the kit in the case's folder; large files are links, which the scripts replace whole."""
        shutil.copytree(self.root / name, folder / name, copy_function=copy_or_link)
        return folder / name


def copy_or_link(source: str, target: str) -> None:
    if source.endswith((".pt", "big.jpg")):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@dataclass(frozen=True)
class Case:
    """A call and what it may do.

    make: puts the input into the case's folder, where the script runs. status: those that are right. new: what may
    appear there or change. says: in the line on stderr. memory, file_size: see ``tests.hostile.Call``.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    make: Callable[[Kit, Path], object] = lambda kit, folder: None
    status: tuple[int, ...] = (2,)
    new: tuple[str, ...] = ()
    says: str = ""
    memory: int | None = None
    file_size: int | None = None


# checkpoints


USERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "predict": ("end2end", ("photo.jpg", "--checkpoint", "w.pt", "--out", "out", *CPU)),
    "evaluate": ("end2end", ("--checkpoint", "w.pt", "--max-images", "1", *SMALL, *MACHINE, "--cache", "cache")),
    "tools.release": ("end2end", ("--checkpoint", "w.pt", "--out", "new.pt")),
    "hubconf": ("end2end", ("w.pt",)),
    "train_stage1": ("stage1", ("--init-from", "w.pt", *SMALL, *TRAINING)),
    "train_cropper": ("cropper", ("--init-from", "w.pt", *SMALL, *TRAINING)),
    "train_stage2": ("stage2", ("--init-from", "w.pt", *SMALL, *TRAINING)),
    "train_end2end": ("end2end", ("--init-from", "w.pt", *SMALL, *TRAINING)),
    "tools.export": ("end2end", ("--checkpoint", "w.pt", "--program", "new.pt2")),
    "tools.relabel": ("end2end", ("--checkpoint", "w.pt", "--out", "out", "--max-images", "1", *SMALL, *MACHINE)),
}
WRITTEN = ("out", "new.pt", "run", "cache")  # where a checkpoint is good enough after all
MAY_BE_GOOD = ("bytes before it", "bits flipped at its start", "last byte lost")


def photo_beside(folder: Path) -> None:
    (folder / "photo.jpg").write_bytes(damage.jpeg())


def damaged_bytes(name: str, stage: str) -> Callable[[Kit, Path], object]:
    def make(kit: Kit, folder: Path) -> None:
        photo_beside(folder)
        (folder / "w.pt").write_bytes(damage.CHECKPOINT_BYTES[name](kit.weights[stage].read_bytes()))

    return make


def damaged_state(name: str, stage: str) -> Callable[[Kit, Path], object]:
    def make(kit: Kit, folder: Path) -> None:
        photo_beside(folder)
        state = damage.copied(damage.load(kit.weights[stage]))
        damage.save(damage.CHECKPOINT_STATES[name](state), folder / "w.pt")

    return make


def special(name: str, at: str, beside: bool = True) -> Callable[[Kit, Path], object]:
    def make(kit: Kit, folder: Path) -> None:
        if beside:
            photo_beside(folder)
        (folder / at).parent.mkdir(parents=True, exist_ok=True)
        damage.SPECIAL[name](folder / at)

    return make


def checkpoint_cases() -> Iterator[Case]:
    users = list(USERS)
    everywhere = ("empty", "text", "truncated at 50%")
    special_everywhere = ("pipe", "folder", "endless device")
    turn = 0
    for names, made, all_users in (
        (damage.CHECKPOINT_BYTES, damaged_bytes, everywhere),
        (damage.CHECKPOINT_STATES, damaged_state, ("NaN",)),
        (damage.SPECIAL, None, special_everywhere),
    ):
        for name in names:
            turn += 1
            for user in users if name in all_users else [users[turn % len(users)]]:
                stage, arguments = USERS[user]
                make = special(name, "w.pt") if made is None else made(name, stage)
                good = name in MAY_BE_GOOD
                yield Case(
                    f"{user}: checkpoint, {name}",
                    user,
                    arguments,
                    make,
                    (0, 2) if good else (2,),
                    WRITTEN if good else ("run",) if user.startswith("train") else (),
                    says=r"w\.pt",
                )
    yield Case("predict: checkpoint through a file", "predict", ("photo.jpg", "--checkpoint", "photo.jpg/w.pt"), photo)
    long = "w" * 300 + ".pt"
    for user in ("predict", "train_stage1", "hubconf"):
        arguments = tuple(long if word == "w.pt" else word for word in USERS[user][1])
        yield Case(f"{user}: checkpoint with too long a name", user, arguments, photo, new=("run",))


def photo(kit: Kit, folder: Path) -> None:
    photo_beside(folder)


# photos for predict


def link_weights(kit: Kit, folder: Path) -> None:
    os.link(kit.weights["end2end"], folder / "w.pt")


def two_photos(make: Callable[[Path], object], name: str) -> Callable[[Kit, Path], object]:
    def both(kit: Kit, folder: Path) -> None:
        link_weights(kit, folder)
        (folder / "good.jpg").write_bytes(damage.jpeg())
        make(folder / name)

    return both


def picture(content: Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content())


def predicting(*photos: str) -> tuple[str, ...]:
    return (*photos, "--checkpoint", "w.pt", "--out", "out", *CPU)


def photo_cases() -> Iterator[Case]:
    for kind, file, bad in (("photo", "bad.jpg", damage.BAD_PICTURES), ("video", "bad.mp4", damage.BAD_VIDEOS)):
        places = {**{name: picture(content) for name, content in bad.items()}, **damage.SPECIAL}
        says = rf"^failed: .*{re.escape(file)}"
        for name, place in places.items():
            make, arguments = two_photos(place, file), predicting("good.jpg", file)
            yield Case(f"predict: {kind}, {name}", "predict", arguments, make, (1,), ("out",), says=says)
    for name, place in damage.SPECIAL.items():
        if name not in ("missing",):
            make = two_photos(place, "bad.jpg")
            yield Case(f"predict: in a folder, {name}", "predict", predicting("."), make, (0, 1), ("out",))
    for name, content in damage.GOOD_PICTURES.items():
        make, arguments = two_photos(picture(content), "odd.jpg"), predicting("good.jpg", "odd.jpg")
        yield Case(f"predict: good photo, {name}", "predict", arguments, make, (0,), ("out",))
    jpeg = picture(damage.jpeg)
    for name, file, status in (
        ("240 letters", "n" * 236 + ".jpg", (0,)),
        ("250 letters", "n" * 246 + ".jpg", (0, 1)),
        ("255 letters", "n" * 251 + ".jpg", (0, 1)),
        ("line break", "a\nfailed: b.jpg", (0, 1)),
        ("escape sequence", "a\x1b[31mred.jpg", (0, 1)),
        ("not UTF-8", os.fsdecode(b"caf\xe9.jpg"), (0, 1)),
        ("letters of Unicode", "é漢字🙂.jpg", (0,)),
        ("spaces", "  a  b  .jpg", (0,)),
        ("brackets", "[a-z]*.jpg", (0,)),
        ("percent signs", "%s%d{0}.jpg", (0,)),
        ("only a suffix", "...jpg", (0, 1)),
    ):
        for again in (False, True):
            yield Case(
                f"predict: photo's name, {name}{', again' * again}",
                "predict",
                predicting("good.jpg", file),
                again_after(two_photos(jpeg, file), predicting("good.jpg", file)) if again else two_photos(jpeg, file),
                status,
                ("out",),
            )
        bad = two_photos(picture(lambda: b"no picture"), file)
        yield Case(f"predict: bad photo, {name}", "predict", predicting("good.jpg", file), bad, (1,), ("out",))
    big = two_photos(lambda path: None, "")

    def big_beside(kit: Kit, folder: Path) -> None:
        big(kit, folder)
        os.link(kit.big, folder / "big.jpg")

    yield Case(
        "predict: a photo of 12000 x 12000 in little memory",
        "predict",
        (*predicting("good.jpg", "big.jpg"), "--faces", "none"),
        big_beside,
        (1,),
        ("out",),
        says=r"^failed: .*big\.jpg",
        memory=700 << 20,
    )
    one = two_photos(lambda path: None, "")
    for kind, file in (("labels", "good.png"), ("overlay", "good_overlay.jpg"), ("probabilities", "good.npz")):
        yield Case(
            f"predict: a folder in place of the {kind}",
            "predict",
            (*predicting("good.jpg"), "--overwrite", "--probabilities"),
            with_folder(one, f"out/{file}"),
            says="failed: good.jpg",
        )
    yield Case("predict: full disk", "predict", predicting("good.jpg"), one, new=("out",), file_size=0)
    yield Case("predict: disk full after some", "predict", predicting("good.jpg"), one, new=("out",), file_size=300)


def again_after(make: Callable[[Kit, Path], object], arguments: tuple[str, ...]) -> Callable[[Kit, Path], object]:
    """After a first call of predict."""

    def both(kit: Kit, folder: Path) -> None:
        make(kit, folder)
        kit.scripts.run(Call("predict", list(arguments), str(folder)))

    return both


def with_folder(make: Callable[[Kit, Path], object], path: str) -> Callable[[Kit, Path], object]:
    def both(kit: Kit, folder: Path) -> None:
        make(kit, folder)
        (folder / path).mkdir(parents=True)

    return both


# data sets and folders of label maps


def faces_with(at: str, make: Callable[[Path], object]) -> Callable[[Kit, Path], object]:
    """The challenge's layout with one file replaced."""

    def both(kit: Kit, folder: Path) -> None:
        link_weights(kit, folder)
        path = kit.copy("faces", folder) / at
        path.unlink(missing_ok=True)
        make(path)

    return both


CELEBAMASK = ("--dataset", "celebamask", "--data", "faces")
READERS: dict[str, tuple[str, ...]] = {
    "evaluate": ("--checkpoint", "w.pt", *CELEBAMASK, "--split", "train", *MACHINE, "--cache", "cache"),
    "train_stage1": ("--coarse-size", "16", *CELEBAMASK, *TRAINING),
    "tools.check": CELEBAMASK,
    "train_stage2": ("--crop-size", "9", *CELEBAMASK, *TRAINING),
}


def mask(ids: np.ndarray) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(ids).save(path, "PNG")


IDS = draw_face(64)[1]
BAD_MASKS: dict[str, Callable[[Path], object]] = {
    "colours": mask(draw_face(64)[0]),
    "unknown ids": mask(np.full((64, 64), 99, np.uint8)),
    "brightness of 16 bits": mask(np.full((64, 64), 40_000, np.uint16)),
    "another size": mask(np.zeros((32, 32), np.uint8)),
    "real numbers": lambda path: Image.fromarray(np.ones((64, 64), np.float32)).save(path, "TIFF"),
    "one pixel": mask(np.zeros((1, 1), np.uint8)),
}


def data_cases() -> Iterator[Case]:
    readers = list(READERS)
    pictures = {
        name: picture(damage.BAD_PICTURES[name])
        for name in (
            "empty",
            "text",
            "noise",
            "JPEG, 30% of it",
            "PNG, 70% of it",
            "PNG with data that is no data",
            "PNG that promises 60000 x 60000",
            "PNG of 1 bit that unpacks to 20000 x 20000",
            "PostScript, a format that is not read",
            "TIFF of noise",
        )
    }
    photos = {**pictures, **damage.SPECIAL, "one pixel": picture(damage.GOOD_PICTURES["1 x 1"])}
    masks = {**pictures, **damage.SPECIAL, **BAD_MASKS}
    for turn, (what, name, make) in enumerate(
        [("photo", *item) for item in photos.items()] + [("mask", *item) for item in masks.items()]
    ):
        at = "train/train_image/0.jpg" if what == "photo" else "train/train_mask/0.png"
        for reader in dict.fromkeys(
            (readers[turn % 4], "tools.check") if name in damage.SPECIAL else readers[turn % 4 : turn % 4 + 1]
        ):
            status = (1,) if reader == "tools.check" else (2,)
            files = faces_with(at, make)
            yield Case(f"{reader}: {what}, {name}", reader, READERS[reader], files, status, ("cache", "run"))
    for stage, size in (("train_stage1", "--coarse-size"), ("train_stage2", "--crop-size")):
        yield Case(
            f"{stage}: labels are all background",
            stage,
            (size, "16", *CELEBAMASK, *TRAINING),
            background,
            new=("cache", "run"),
            says="background",
        )
    for folder in ("train", "train/train_image", "train/train_mask"):
        for name in ("missing", "pipe", "link to itself"):
            for reader in ("evaluate", "tools.check"):
                make = in_place_of(f"faces/{folder}", damage.SPECIAL[name])
                arguments = (*READERS[reader], *(("--split", "train") if reader == "tools.check" else ()))
                yield Case(f"{reader}: {folder}, {name}", reader, arguments, make, (1, 2), ("cache",))
    for name in ("missing", "pipe", "empty device", "link to itself"):
        make = in_place_of("faces", damage.SPECIAL[name])
        yield Case(f"evaluate: data folder, {name}", "evaluate", READERS["evaluate"], make)
        yield Case(f"tools.check: data folder, {name}", "tools.check", READERS["tools.check"], make)
    yield Case(
        "tools.check: empty data folder", "tools.check", READERS["tools.check"], with_folder(link_weights, "faces")
    )


def background(kit: Kit, folder: Path) -> None:
    for path in (kit.copy("faces", folder) / "train" / "train_mask").iterdir():
        save_palette(path, np.zeros((64, 64), np.uint8))


def in_place_of(at: str, make: Callable[[Path], object]) -> Callable[[Kit, Path], object]:
    def both(kit: Kit, folder: Path) -> None:
        link_weights(kit, folder)
        kit.copy("faces", folder)
        shutil.rmtree(folder / at)
        make(folder / at)

    return both


LISTS: dict[str, bytes] = {
    "empty": b"",
    "blank lines": b"\n \n\t\n",
    "no comma": b"1 test0\n",
    "no number": b"x , test0\n",
    "no name": b"1 , \n",
    "not UTF-8": b"1 , caf\xe9\n",
    "UTF-16": "1 , test0\n".encode("utf-16"),
    "zeros": bytes(300),
    "noise": np.random.default_rng(0).bytes(3000),
    "names outside": b"1 , ../../outside/sentinel\n",
    "names from the root": b"1 , /etc/passwd\n",
    "a name with a zero byte": b"1 , a\0b\n",
    "a name of 5,000 letters": b"1 , " + b"n" * 5000 + b"\n",
    "unknown names": b"1 , nobody\n2 , nothing\n",
    "a name twice": b"1 , test0\n2 , test0\n",
    "names of another split": b"1 , train0\n",
    "JSON": b'{"test": ["test0"]}',
}
MAPPINGS: dict[str, bytes] = {
    "empty": b"",
    "header alone": b"idx orig_idx orig_file\n",
    "other columns": b"a b c\n1 2 3\n",
    "letters": b"idx orig_idx orig_file\nx y z\n",
    "too few columns": b"idx orig_idx orig_file\n1\n",
    "5,000 digits": b"idx orig_idx orig_file\n" + b"1" * 5000 + b" 1 x\n",
    "zeros": bytes(300),
    "UTF-16": "idx orig_idx orig_file\n1 2 3\n".encode("utf-16"),
}


def helen_with(file: str, make: Callable[[Path], object]) -> Callable[[Kit, Path], object]:
    def both(kit: Kit, folder: Path) -> None:
        link_weights(kit, folder)
        shutil.copytree(kit.helen, folder / "faces")
        (folder / "faces" / file).unlink()
        make(folder / "faces" / file)

    return both


def official_with(file: str, make: Callable[[Path], object]) -> Callable[[Kit, Path], object]:
    def both(kit: Kit, folder: Path) -> None:
        link_weights(kit, folder)
        shutil.copytree(kit.official, folder / "faces")
        (folder / "faces" / file).unlink(missing_ok=True)
        make(folder / "faces" / file)

    return both


def list_cases() -> Iterator[Case]:
    lists: dict[str, Callable[[Path], object]] = {name: content(value) for name, value in LISTS.items()}
    file = helen.LISTS["test"]
    data = ("--dataset", "helen", "--data", "faces", "--split", "test")
    scoring = ("--checkpoint", "w.pt", *MACHINE, "--cache", "cache")
    for turn, (name, make) in enumerate({**lists, **damage.SPECIAL}.items()):
        files = helen_with(file, make)
        if turn % 2 or name in damage.SPECIAL:
            yield Case(f"evaluate: list, {name}", "evaluate", (*scoring, *data), files, new=("cache",))
        if not turn % 2 or name in damage.SPECIAL:
            yield Case(f"tools.check: list, {name}", "tools.check", data, files, (1, 2))
    data = ("--dataset", "celebamask", "--data", "faces", "--split", "train")
    mappings: dict[str, Callable[[Path], object]] = {name: content(value) for name, value in MAPPINGS.items()}
    specials = {name: make for name, make in damage.SPECIAL.items() if name != "missing"}
    for turn, (name, make) in enumerate({**mappings, **specials}.items()):
        files = official_with(celebamask.MAPPING_FILE, make)
        if turn % 2:
            yield Case(f"evaluate: mapping, {name}", "evaluate", (*scoring, *data), files, (2,), ("cache",))
        else:
            yield Case(f"tools.check: mapping, {name}", "tools.check", data, files, (1, 2))
    photos = f"{celebamask.PHOTO_FOLDER}/"
    for name, path in (("a face twice", f"{photos}0000.jpg"), ("a photo without number", f"{photos}x.jpg")):
        make = official_with(path, picture(damage.jpeg))
        yield Case(f"tools.check: {name}", "tools.check", data, make, (1, 2))
        yield Case(f"evaluate: {name}", "evaluate", (*scoring, *data), make, new=("cache",))
    make = official_with(f"{photos}0.jpg", picture(damage.GOOD_PICTURES["1 x 1"]))
    yield Case("tools.check: a photo of one pixel with a mask of 64 x 64", "tools.check", data, make, (1,))
    yield Case(
        "evaluate: a photo of one pixel with a mask of 64 x 64", "evaluate", (*scoring, *data), make, (2,), ("cache",)
    )


def content(value: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(value)


def label_folders(make: Callable[[Path], object], name: str = "a.png") -> Callable[[Kit, Path], object]:
    """Two folders of two label maps each, one file of the first made otherwise."""

    def both(kit: Kit, folder: Path) -> None:
        for part in ("predictions", "truth"):
            (folder / part).mkdir()
            for stem in ("a", "b"):
                save_palette(folder / part / f"{stem}.png", np.minimum(IDS, 8))
        (folder / "predictions" / "a.png").unlink()
        make(folder / "predictions" / name)

    return both


def folder_cases() -> Iterator[Case]:
    pictures = {
        name: picture(damage.BAD_PICTURES[name])
        for name in ("empty", "text", "PNG, 70% of it", "GIF, a format that is not read")
    }
    pictures["PNG of 1 bit that unpacks to 20000 x 20000"] = picture(lambda: damage.one_bit(20_000))
    arguments = ("--predictions", "predictions", "--truth", "truth", *MACHINE)
    for name, make in {**pictures, **BAD_MASKS, **damage.SPECIAL}.items():
        yield Case(f"evaluate: label map, {name}", "evaluate", arguments, label_folders(make))
    good = mask(np.minimum(IDS, 8))
    for name, file in (
        ("without partner", "c.png"),
        ("not UTF-8", os.fsdecode(b"\xe9.png")),
        ("line break", "a\nb.png"),
    ):
        yield Case(f"evaluate: label map's name, {name}", "evaluate", arguments, label_folders(good, file))
    for name in damage.SPECIAL:
        if name == "folder":
            continue
        make = special(name, "truth", beside=False)
        yield Case(f"evaluate: folder of label maps, {name}", "evaluate", arguments, make)
    both = label_folders(good)
    out = (*arguments, "--out", "out", "--worst", "1")
    for file in ("scores.json", "scores.csv", "scores.md", "worst/001_0.9000_a.jpg"):
        make = with_file(both, f"out/{file}")
        yield Case(f"evaluate: --out holds {file}", "evaluate", out, make, says="overwrite")
        yield Case(
            f"evaluate: --out has a folder in place of {file}",
            "evaluate",
            (*out, "--overwrite"),
            with_folder(both, f"out/{file}"),
            (0, 2),
            ("out",),
        )
    yield Case("evaluate: full disk", "evaluate", out, both, new=("out",), file_size=0)
    yield Case(
        "evaluate: full disk, older scores",
        "evaluate",
        (*out, "--overwrite"),
        with_file(both, "out/scores.csv"),
        new=("out/worst",),
        file_size=0,
    )


def with_file(make: Callable[[Kit, Path], object], path: str, value: bytes = b"mine") -> Callable[[Kit, Path], object]:
    def both(kit: Kit, folder: Path) -> None:
        make(kit, folder)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(value)

    return both


# run folders and results


def run_with(file: str, make: Callable[[Path], object]) -> Callable[[Kit, Path], object]:
    """An interrupted training, one file of which is made otherwise."""

    def both(kit: Kit, folder: Path) -> None:
        kit.copy("faces", folder)
        kit.copy("cache", folder)
        path = kit.copy("run", folder) / file
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        make(path)

    return both


def last_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Kit, Path], object]:
    def both(kit: Kit, folder: Path) -> None:
        run_with("last.pt", lambda path: None)(kit, folder)
        state = damage.copied(damage.load(kit.root / "run" / "last.pt"))
        damage.save(change(state), folder / "run" / "last.pt")

    return both


RESUMING, USED, AGAIN = "RESUMING", "USED", "AGAIN"  # stand for the options of the kit's trainings
RUN_STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "without optimizer": damage.without("optimizer"),
    "optimizer a list": damage.with_value("optimizer", value=[]),
    "optimizer empty": damage.with_value("optimizer", value={}),
    "optimizer without state": damage.without("optimizer", "state"),
    "optimizer's state a list": damage.with_value("optimizer", "state", value=[1]),
    "optimizer's state of texts": damage.with_value("optimizer", "state", value={0: "x"}),
    "optimizer's groups a text": damage.with_value("optimizer", "param_groups", value="x"),
    "optimizer's groups twice": lambda state: damage.with_value(
        "optimizer", "param_groups", value=state["optimizer"]["param_groups"] * 2
    )(state),
    "epoch a text": damage.with_value("epoch", value="0"),
    "epoch NaN": damage.with_value("epoch", value=damage.NAN),
    "epoch half": damage.with_value("epoch", value=0.5),
    "epoch negative": damage.with_value("epoch", value=-7),
    "epoch far ahead": damage.with_value("epoch", value=10**9),
    "best None": damage.with_value("best", value=None),
    "best a list": damage.with_value("best", value=[1]),
    "best empty": damage.with_value("best", value={}),
    "best a text": damage.with_value("best", "f1", value="x"),
    "modules None": damage.with_value("modules", value=None),
    "modules empty": damage.with_value("modules", value={}),
    "NaN": damage.every_network(damage.filled(damage.NAN)),
    "sparse": damage.every_network(lambda tensor: tensor.to_sparse()),
    "another stage": damage.with_value("stage", value="stage2"),
    "stage a tensor": damage.with_value("stage", value=damage.torch.ones(2)),
    "recipe a tensor": damage.with_value("recipe", value=damage.torch.ones(2)),
    "data set a tensor": damage.with_value("dataset", value=damage.torch.ones(2)),
    "recipe None": damage.with_value("recipe", value=None),
}
LOGS: dict[str, bytes] = {
    "not JSON": b"hello}\n",
    "a list": b"[{}]\n",
    "lists that look like rows": b'[1, {"epoch": 0}\n',
    "no epoch": b'{"loss": 1}\n',
    "epoch a text": b'{"epoch": "0"}\n',
    "not UTF-8": b'{"epoch": 0, "\xff": 1}\n',
    "nested deeply": b'{"epoch": ' + b"[" * 100_000 + b"}\n",
    "zeros": bytes(300),
    "empty": b"",
    "half a line": b'{"epoch": 0, "lo',
}


def run_cases() -> Iterator[Case]:
    def resume(name: str, make: Callable[[Kit, Path], object], status: tuple[int, ...] = (2,)) -> Case:
        goes_on = ("run", "cache") if 0 in status else ("cache",)
        return Case(f"train_stage1: {name}", "train_stage1", (RESUMING,), make, status, goes_on)

    for name in ("empty", "text", "truncated at 50%", "truncated at 99%", "old format, a list", "picture"):

        def damaged(kit: Kit, folder: Path, name: str = name) -> None:
            good = (kit.root / "run" / "last.pt").read_bytes()
            run_with("last.pt", content(damage.CHECKPOINT_BYTES[name](good)))(kit, folder)

        yield resume(f"last.pt, {name}", damaged)
    for name, change in RUN_STATES.items():
        yield resume(f"last.pt, {name}", last_with(change))
    for name, value in LOGS.items():
        yield resume(f"log.jsonl, {name}", run_with("log.jsonl", content(value)), (0, 2))  # last.pt is what counts
    for file in ("last.pt", "log.jsonl", "config.json", "tensorboard"):
        for name, place in damage.SPECIAL.items():
            if name == "missing" or (file == "tensorboard" and name == "folder"):
                continue
            turns = name in ("folder", "pipe", "endless device") or file == "last.pt"
            if turns:
                yield resume(f"{file}, {name}", run_with(file, place), (2,) if file == "last.pt" else (0, 2))
    yield Case(
        "train_stage1: run folder in use", "train_stage1", (USED,), run_with("x", lambda path: None), new=("cache",)
    )
    for name in damage.SPECIAL:
        if name in ("missing", "folder", "link to nothing"):
            continue
        make = special(name, "run", beside=False)
        yield Case(f"train_stage2: run folder, {name}", "train_stage2", (*SMALL, *TRAINING), make, new=("cache",))
        make = special(name, "cache", beside=False)
        yield Case(f"train_stage2: cache, {name}", "train_stage2", (*SMALL, *TRAINING), make, new=("run",))
    yield Case("train_stage2: full disk", "train_stage2", (*SMALL, *TRAINING), new=("run", "cache"), file_size=0)
    yield Case("tools.release: full disk", "tools.release", USERS["tools.release"][1], link_weights, file_size=0)
    yield Case(
        "tools.release: full disk, an older file",
        "tools.release",
        (*USERS["tools.release"][1], "--overwrite"),
        with_file(link_weights, "new.pt"),
        file_size=5000,
    )
    for name in damage.SPECIAL:
        if name not in ("missing", "link to nothing"):
            make = both_of(link_weights, special(name, "new.pt", beside=False))
            arguments = (*USERS["tools.release"][1], "--overwrite")
            status = (2,) if name == "folder" else (0, 2)
            yield Case(f"tools.release: --out, {name}", "tools.release", arguments, make, status, ("new.pt",))
    yield from locks()


def both_of(*makes: Callable[[Kit, Path], object]) -> Callable[[Kit, Path], object]:
    def make(kit: Kit, folder: Path) -> None:
        for each in makes:
            each(kit, folder)

    return make


def locks() -> Iterator[Case]:
    """Locks, and the cache's files, that are links to a file outside, or no regular files."""

    def replaced(which: str, place: Callable[[Path], object]) -> Callable[[Kit, Path], object]:
        def make(kit: Kit, folder: Path) -> None:
            run_with("x", lambda path: None)(kit, folder)
            first = [*kit.words[(RESUMING,)][:-3], "--run-dir", "first"]
            assert kit.scripts.run(Call("train_stage1", first, str(folder))).status == 0
            for path in list((folder / "cache").rglob(which)):
                path.unlink()
                place(path)

        return make

    for which in ("lock", "*.bin"):
        for name in ("folder", "pipe", "endless device", "link to itself"):
            place = damage.SPECIAL[name]
            make = replaced(which, place)
            yield Case(f"train_stage1: {which}, {name}", "train_stage1", (RESUMING,), make, (0, 2), ("run", "cache"))
        make = replaced(which, lambda path: path.symlink_to(sentinel_of(path)))
        yield Case(f"train_stage1: {which}, link outside", "train_stage1", (RESUMING,), make, (0, 2), ("run", "cache"))
        for name in ("empty", "noise"):
            make = replaced(which, content(damage.BAD_PICTURES[name]()))
            yield Case(f"train_stage1: {which}, {name}", "train_stage1", (RESUMING,), make, (0, 2), ("run", "cache"))


def sentinel_of(path: Path) -> Path:
    """The file outside that no script may touch."""
    return next(parent for parent in path.parents if parent.name == "case").parent / "outside" / "sentinel.txt"


def chain_with(file: str, make: Callable[[Path], object]) -> Callable[[Kit, Path], object]:
    def both(kit: Kit, folder: Path) -> None:
        kit.copy("faces", folder)
        kit.copy("cache", folder)
        path = kit.copy("chain", folder) / file
        if path.is_file():
            path.unlink()
        make(path)

    return both


SCORES = "scores/test/STN-iCNN/scores.json"


def chain_cases() -> Iterator[Case]:
    for turn, (name, value) in enumerate(damage.JSON_BYTES.items()):
        if turn % 2 or name in ("empty", "nested deeply"):
            make = chain_with(SCORES, content(value))
            yield Case(f"reproduce: scores.json, {name}", "reproduce", (AGAIN,), make, (0, 2), ("chain", "cache"))
    for name in ("pipe", "endless device", "folder"):
        make = chain_with(SCORES, damage.SPECIAL[name])
        yield Case(f"reproduce: scores.json, {name}", "reproduce", (AGAIN,), make, (0, 2), ("chain", "cache"))
    for name in ("empty", "text"):
        make = chain_with("cropper/last.pt", content(damage.CHECKPOINT_BYTES[name](b"")))
        yield Case(f"reproduce: last.pt, {name}", "reproduce", (AGAIN,), make, new=("cache",))
        make = chain_with("cropper/best.pt", content(damage.CHECKPOINT_BYTES[name](b"")))
        yield Case(f"reproduce: best.pt, {name}", "reproduce", (AGAIN,), make, new=("cache",))
    for name in ("missing", "pipe", "folder"):
        make = chain_with("stage2/best.pt", damage.SPECIAL[name])
        yield Case(f"reproduce: best.pt, {name}", "reproduce", (AGAIN,), make, new=("cache",))


def results_with(file: str, make: Callable[[Path], object]) -> Callable[[Kit, Path], object]:
    def both(kit: Kit, folder: Path) -> None:
        write_run(folder / "results" / "mine", 0, 0.9)
        (folder / "results" / "experiments").mkdir()
        path = folder / "results" / file
        path.unlink(missing_ok=True)
        make(path)

    return both


def changed_json(source: Callable[[Path], Path], change: Callable[[Any], Any]) -> Callable[[Path], object]:
    """Writes a JSON file that is a changed copy of another."""
    return lambda path: path.write_text(json.dumps(change(json.loads(source(path).read_text()))))


ROW = "mine/scores/test/coarse_mask_enlarged/scores.json"
OTHER_ROW = "iCNN__old_cropper_"
SCORE_VALUES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "without paper": damage.without("paper"),
    "paper a list": damage.with_value("paper", value=[1]),
    "paper's overall a text": damage.with_value("paper", "overall", value="x"),
    "strict null": damage.with_value("strict", value=None),
    "strict without mean": damage.without("strict", "mean"),
    "without images": damage.without("images"),
    "without data set": damage.without("dataset"),
    "data set a list": damage.with_value("dataset", value=[]),
}
CONFIG_JSON: dict[str, Callable[[dict[str, Any]], Any]] = {
    "without optimisation": damage.without("optimisation"),
    "rates a list": damage.with_value("optimisation", "lr", value=[1]),
    "rates of texts": damage.with_value("optimisation", "lr", value={"coarse": "x"}),
    "without images": damage.without("images"),
    "without environment": damage.without("environment"),
    "config null": damage.with_value("config", value=None),
    "crop size missing": damage.without("config", "crop_size"),
    "recipe a text": damage.with_value("recipe", value="paper"),
}
LOG_ROWS: dict[str, bytes] = {
    "lists": b"[1, 2]\n",
    "no times": b'{"epoch": 0, "f1": 0.5, "loss": 1}\n',
    "times of texts": b'{"epoch": 0, "f1": 0.5, "loss": 1, "train_s": "x", "val_s": 1}\n',
    "epoch a text": b'{"epoch": "0", "f1": 0.5, "loss": 1, "train_s": 1, "val_s": 1}\n',
    "score null": b'{"epoch": 0, "f1": null, "loss": 1, "train_s": 1, "val_s": 1}\n',
    "not UTF-8": b'{"epoch": 0, "\xff": 1}\n',
    "truncated": b'{"epoch": 0, "f1"',
    "nested deeply": b"[" * 100_000 + b"\n",
}


def report_cases() -> Iterator[Case]:
    arguments = ("--results", "results")

    def damaged(name: str, file: str, make: Callable[[Path], object], status: tuple[int, ...] = (2,)) -> Case:
        new = ("results/README.md", "results/mine/curves.png", "results/experiments") if 0 in status else ()
        return Case(
            f"experiments.report: {name}", "experiments.report", arguments, results_with(file, make), status, new
        )

    for turn, (name, value) in enumerate(damage.JSON_BYTES.items()):
        file, what = ((ROW, "scores.json"), ("mine/stage1/config.json", "config.json"))[turn % 2]
        yield damaged(f"{what}, {name}", file, content(value))
    names = list(EXPERIMENTS)
    for turn, (name, value) in enumerate(damage.JSON_BYTES.items()):
        experiment = names[turn % len(names)]
        yield damaged(f"{experiment}.json, {name}", f"experiments/{experiment}.json", content(value))
    for experiment in names:
        source = RESULTS / "experiments" / f"{experiment}.json"
        if not source.is_file():
            continue
        for name, change in (
            ("without rows", damage.without("rows")),
            ("rows a text", damage.with_value("rows", value="x")),
            ("rows of numbers", damage.with_value("rows", value=[1])),
            ("without options", damage.without("options")),
        ):
            if name.startswith("without") and name.split()[1] not in json.loads(source.read_text()):
                continue
            make = changed_json(lambda path, source=source: source, change)
            yield damaged(f"{experiment}.json, {name}", f"experiments/{experiment}.json", make)
    for name, change in SCORE_VALUES.items():
        make = changed_json(lambda path: path.parents[1] / OTHER_ROW / "scores.json", change)
        yield damaged(f"scores.json, {name}", ROW, make)
    for name, change in CONFIG_JSON.items():
        write = changed_json(lambda path: path.with_name("copy.json"), change)
        yield damaged(f"config.json, {name}", "mine/stage1/config.json", from_copy(write))
    for name, value in LOG_ROWS.items():
        status = (0, 2) if name == "score null" else (2,)
        yield damaged(f"log.jsonl, {name}", "mine/stage1/log.jsonl", content(value), status)
    for file in (ROW, "mine/stage1/config.json", "mine/stage1/log.jsonl", "mine/command.txt"):
        for name in ("pipe", "endless device", "folder"):
            yield damaged(f"{Path(file).name}, {name}", file, damage.SPECIAL[name], (0, 2))
    yield damaged("command.txt, not UTF-8", "mine/command.txt", content(b"\xff\xfe\xe9"))
    yield damaged("README.md, a folder", "README.md", damage.SPECIAL["folder"])
    for name in ("missing", "pipe", "empty device", "link to itself"):
        make = special(name, "results", beside=False)
        yield Case(f"experiments.report: results, {name}", "experiments.report", arguments, make)
    yield Case("experiments.report: results, empty", "experiments.report", arguments, special("folder", "results"))
    full = results_with("x", lambda path: None)
    yield Case("experiments.report: full disk", "experiments.report", arguments, full, file_size=0)


def from_copy(write: Callable[[Path], object]) -> Callable[[Path], object]:
    """Before: config.json as ``write_run`` makes it, under another name for a moment."""

    def make(path: Path) -> None:
        write_run(path.parents[1] / "other", 0, 0.9)
        (path.parents[1] / "other" / "stage1" / "config.json").rename(path.with_name("copy.json"))
        shutil.rmtree(path.parents[1] / "other")
        write(path)
        path.with_name("copy.json").unlink()

    return make


# downloads

BODY = bytes(range(256)) * 16
OK = b"HTTP/1.1 200 OK\r\n"
RESPONSES: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "length of letters": (OK + b"Content-Length: abc\r\n\r\n" + BODY, (0, 2)),
    "length below 0": (OK + b"Content-Length: -5\r\n\r\n" + BODY, (0, 2)),
    "length of 40 digits": (OK + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + BODY, (0, 2)),
    "length too small": (OK + b"Content-Length: 100\r\n\r\n" + BODY, (2,)),
    "length too large": (OK + b"Content-Length: 9999\r\n\r\n" + BODY, (0, 2)),
    "length twice": (OK + b"Content-Length: 5\r\nContent-Length: 4096\r\n\r\n" + BODY, (0, 2)),
    "too little": (OK + b"\r\n" + BODY[:100], (2,)),
    "too much": (OK + b"\r\n" + BODY * 9, (2,)),
    "other bytes": (OK + b"Content-Length: 4096\r\n\r\n" + bytes(4096), (2,)),
    "redirect to itself": (b"HTTP/1.1 302 Found\r\nLocation: ITSELF\r\nContent-Length: 0\r\n\r\n", (2,)),
    "redirect to a file": (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", (2,)),
    "redirect to nowhere": (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", (2,)),
    "redirect to half an address": (b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n", (2,)),
    "redirect outside ASCII": (b"HTTP/1.1 302 Found\r\nLocation: /\xe9\r\nContent-Length: 0\r\n\r\n", (2,)),
    "not found": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", (2,)),
    "not found, and a long reason": (b"HTTP/1.1 404 " + b"no " * 5000 + b"\r\nContent-Length: 0\r\n\r\n", (2,)),
    "not found, and a reason outside ASCII": (b"HTTP/1.1 404 \xe9\x1b[31m\r\nContent-Length: 0\r\n\r\n", (2,)),
    "server's fault": (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", (2,)),
    "no content": (b"HTTP/1.1 204 Nothing\r\n\r\n", (2,)),
    "a part that was not asked for": (b"HTTP/1.1 206 Part\r\nContent-Range: bytes 5-9/10\r\n\r\nabcde", (2,)),
    "no HTTP": (b"hello\r\n\r\n", (2,)),
    "nothing": (b"", (2,)),
    "status of letters": (b"HTTP/1.1 abc OK\r\n\r\n", (2,)),
    "too many headers": (OK + b"X: y\r\n" * 300 + b"\r\n" + BODY, (2,)),
    "a header of 100,000 letters": (OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n" + BODY, (2,)),
    "broken chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY, (2,)),
    "chunk of 20 digits": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 20 + b"\r\n" + BODY, (2,)),
    "said to be packed": (OK + b"Content-Encoding: gzip\r\nContent-Length: 4096\r\n\r\n" + BODY, (0, 2)),
    "good": (OK + b"Content-Length: 4096\r\n\r\n" + BODY, (0,)),
}


class Handler(socketserver.StreamRequestHandler):
    """Answers a request for /NUMBER/… with that one of ``RESPONSES``, byte for byte."""

    def handle(self) -> None:
        line = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        number = re.match(rb"GET /(\d+)/", line)
        answers = [answer for answer, _ in RESPONSES.values()]
        answer = answers[int(number[1])] if number else b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
        self.wfile.write(answer.replace(b"ITSELF", line.split()[1] if number else b"/"))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client may have gone."""


ENTRY: dict[str, Any] = {
    "name": "w",
    "file": "w.bin",
    "url": "URL",
    "bytes": len(BODY),
    "sha256": hashlib.sha256(BODY).hexdigest(),
    "holds": {"model1": "coarse"},
}
GOOD = list(RESPONSES).index("good")
ENTRIES: dict[str, dict[str, Any]] = {
    **{
        f"{field} {n}, a {type(value).__name__}": {field: value}
        for field, values in {
            "name": (None, 5, ["w"]),
            "file": (None, 5, "", ".", "..", "../w.bin", "a/b", "/etc/x", "a\0b", "n" * 300, ["w"]),
            "url": (None, 5, "", "ftp://127.0.0.1/w", "file:///etc/passwd", "http://", "http://[::1", "https:///w"),
            "bytes": (None, "4096", -1, 0.5, 1e99, [4096]),
            "sha256": (None, 5, "", "xyz", "0" * 64, [1]),
            "holds": (None, 5, [1], "x"),
        }.items()
        for n, value in enumerate(values)
    },
    "url with a port of letters": {"url": "http://127.0.0.1:port/w"},
    "url with port 70000": {"url": "http://127.0.0.1:70000/w"},
    "url with a line break": {"url": "http://127.0.0.1/w\nHost: x"},
    "url with spaces": {"url": "http://127.0.0.1:9/a b c"},
    "url outside ASCII": {"url": "http://127.0.0.1:9/é漢"},
    "host outside ASCII": {"url": "http://" + "é" * 300 + "/w"},
    "no such port": {"url": "http://127.0.0.1:9/w"},
}


def manifest(entry: Any, **more: Any) -> Callable[[Kit, Path], object]:
    def make(kit: Kit, folder: Path) -> None:
        text = json.dumps({"files": [entry], **more})
        (folder / "m.json").write_text(text.replace("URL", f"http://127.0.0.1:{kit.port}/{GOOD}/w"))

    return make


def download_cases() -> Iterator[Case]:
    arguments = ("w", "--manifest", "m.json", "--out", "out")
    for number, (name, (_, status)) in enumerate(RESPONSES.items()):

        def answered(kit: Kit, folder: Path, number: int = number) -> None:
            manifest({**ENTRY, "url": f"http://127.0.0.1:{kit.port}/{number}/w"})(kit, folder)

        yield Case(f"download: answer, {name}", "download", arguments, answered, status, ("out",))
    for name, changed in ENTRIES.items():
        make = manifest({**ENTRY, **changed})
        status = (0, 2) if name.startswith("holds") else (2,)
        yield Case(f"download: entry's {name}", "download", arguments, make, status, ("out",))
    for field in ENTRY:
        make = manifest({key: value for key, value in ENTRY.items() if key != field})
        status = (0, 2) if field == "holds" else (2,)
        yield Case(f"download: entry without {field}", "download", arguments, make, status, ("out",))
    for name, value in {
        **damage.JSON_BYTES,
        "files null": b'{"files": null}',
        "files a dict": b'{"files": {"a": 1}}',
    }.items():
        make = with_file(manifest(ENTRY), "m.json", value)
        yield Case(f"download: manifest, {name}", "download", ("--list", "--manifest", "m.json"), make)
    for name in damage.SPECIAL:
        make = special(name, "m.json", beside=False)
        yield Case(f"download: manifest, {name}", "download", arguments, make)
        if name in ("missing", "link to nothing"):
            continue
        for file in ("out", "out/w.bin", "out/w.bin.part"):
            good = name == "folder" and file == "out"
            make = both_of(manifest(ENTRY), special(name, file, beside=False))
            status = (
                (0,)
                if good
                else (0, 2)
                if file.endswith("part") or (name == "link to itself" and file == "out/w.bin")
                else (2,)
            )
            yield Case(
                f"download: {file}, {name}", "download", arguments, make, status, ("out",) if 0 in status else ()
            )

    def link_outside(kit: Kit, folder: Path) -> None:
        manifest(ENTRY)(kit, folder)
        (folder / "out").mkdir()
        (folder / "out" / "w.bin.part").symlink_to(folder.parent / "outside" / "sentinel.txt")

    yield Case("download: part is a link outside", "download", arguments, link_outside, (0, 2), ("out",))
    older = with_file(manifest(ENTRY), "out/w.bin")
    yield Case("download: another file of the name", "download", arguments, older)
    yield Case("download: full disk", "download", arguments, manifest(ENTRY), new=("out",), file_size=0)
    yield Case(
        "download: full disk, an older file",
        "download",
        (*arguments, "--force"),
        older,
        new=("out/w.bin.part",),
        file_size=99,
    )


# options

NUMBERS: dict[str, tuple[str, ...]] = {
    "--max-images": ("0", "-3", "x", "1.5"),
    "--face-size": ("15", "2049", "-1", "nan"),
    "--workers": ("-1", "257", "two"),
    "--batch-size": ("0", "65537", "1e3"),
    "--seed": ("-1", str(2**63), "0x1"),
    "--epochs": ("0", "-1", "9" * 5000),
    "--device": ("", "cuda:99", "cpu:99", "mps", "meta", "cpu:x"),
    "--amp": ("on", "fp16"),
    "--dataset": ("lfw", "", "helen"),
    "--partition": ("paper", "other"),
    "--data": ("nowhere",),
    "--recipe": ("none",),
    "--unknown": ("1",),
}
OWN_NUMBERS: dict[str, dict[str, tuple[str, ...]]] = {
    "train_stage1": {"--lr": ("-1", "nan", "inf", "100", "0", "x"), "--coarse-size": ("15", "1025", "0")},
    "train_cropper": {
        "--lr-localizer": ("-0.1", "nan"),
        "--crop-size": ("7", "1025"),
        "--localizer": ("vgg",),
        "--init-from": ("none.pt",),
    },
    "train_stage2": {"--lr": ("nan",), "--crop-size": ("7", "-9", "10**3"), "--init-from": ("none.pt", ".")},
    "train_end2end": {"--lr-parts": ("1e99", "-1"), "--init-from-cropper": ("w.pt",), "--lr": ("0.1",)},
    "reproduce": {"--crop-size": ("7", "1025"), "--coarse-size": ("15", "x"), "--split": ("all",)},
    "evaluate": {"--worst": ("-1", "3"), "--crops": ("all",), "--split": ("all",), "--ids": ("ten",)},
    "predict": {"--crops": ("truth", "none"), "--checkpoint": ("none.pt", "good.jpg")},
}
BASES: dict[str, tuple[str, ...]] = {
    "train_stage1": ("--run-dir", "run"),
    "train_cropper": ("--run-dir", "run", "--init-from", "w.pt"),
    "train_stage2": ("--run-dir", "run"),
    "train_end2end": ("--run-dir", "run", "--init-from", "w.pt"),
    "reproduce": ("--out", "out"),
    "evaluate": ("--checkpoint", "w.pt", "--max-images", "1", "--face-size", "32", "--cache", "cache"),
    "predict": ("good.jpg", "--checkpoint", "w.pt", "--out", "out"),
}
LINES: tuple[tuple[str, str], ...] = (
    ("train_stage1", ""),
    ("train_cropper", "--run-dir run"),
    ("train_end2end", "--run-dir run"),
    ("train_end2end", "--run-dir run --init-from w.pt --init-from-stage2 w.pt"),
    ("train_end2end", "--run-dir run --init-from-cropper w.pt"),
    ("train_stage1", "--run-dir run extra"),
    ("train_stage1", "--run-di run"),
    ("train_stage1", "--run-dir good.jpg/run"),
    ("train_stage1", "--run-dir run --dataset synthetic --data faces"),
    ("train_stage1", "--run-dir run --dataset helen --data . --partition paper"),
    ("reproduce", ""),
    ("reproduce", "--out out --epochs 1 1 1"),
    ("reproduce", "--out out --epochs 1 1 1 0"),
    ("reproduce", "--out out --epochs 1 1 1 1 1"),
    ("reproduce", "--out good.jpg"),
    ("reproduce", "--out good.jpg/out"),
    ("reproduce", "--out out --dataset helen"),
    ("evaluate", "--predictions good.jpg"),
    ("evaluate", "--truth faces"),
    ("evaluate", "--predictions . --truth . --checkpoint w.pt"),
    ("evaluate", "--predictions . --truth . --data ."),
    ("evaluate", "--predictions . --truth . --partition paper"),
    ("evaluate", "--worst 2 --checkpoint w.pt"),
    ("evaluate", "--out good.jpg --checkpoint w.pt"),
    ("evaluate", "--out good.jpg/out --checkpoint w.pt --max-images 1 --face-size 32 --cache cache"),
    ("evaluate", "--checkpoint w.pt --max-images 1 --face-size 32 --cache good.jpg"),
    ("evaluate", "--checkpoint w.pt w.pt w.pt none.pt"),
    ("evaluate", "--checkpoint"),
    ("predict", ""),
    ("predict", "none.jpg"),
    ("predict", "*.xyz"),
    ("predict", "[ --checkpoint w.pt"),
    ("predict", "good.jpg --windows --no-overlay"),
    ("predict", "good.jpg --out good.jpg --checkpoint w.pt"),
    ("predict", "good.jpg --out good.jpg/out --checkpoint w.pt"),
    ("predict", "good.jpg --out . --checkpoint w.pt --overwrite --no-overlay --epochs 3"),
    ("predict", "good.jpg --checkpoint"),
    ("predict", "good.jpg --mirror 3"),
    ("predict", "good.jpg --faces some"),
    ("download", ""),
    ("download", "nobody"),
    ("download", "48fb8cd4 extra"),
    ("download", "--manifest"),
    ("download", "48fb8cd4 --out good.jpg"),
    ("download", "48fb8cd4 --out good.jpg/out"),
    ("download", "--list --manifest none.json"),
    ("download", "../../etc/passwd"),
    ("tools.check", ""),
    ("tools.check", "--dataset lfw"),
    ("tools.check", "--dataset helen"),
    ("tools.check", "--dataset helen --data ."),
    ("tools.check", "--dataset synthetic --data ."),
    ("tools.check", "--dataset synthetic --max-images 0"),
    ("tools.check", "--dataset synthetic --max-images x"),
    ("tools.check", "--dataset synthetic --split all"),
    ("tools.check", "--dataset synthetic --partition paper"),
    ("tools.check", "--dataset synthetic --max-images 1 --out good.jpg"),
    ("tools.check", "--dataset synthetic --max-images 1 --out sheet.txt"),
    ("tools.check", "--dataset synthetic --max-images 1 --split test --out good.jpg/sheet.png"),
    ("tools.export", ""),
    ("tools.export", "--checkpoint w.pt"),
    ("tools.export", "--checkpoint w.pt --program new.onnx"),
    ("tools.export", "--checkpoint w.pt --program none/new.pt2"),
    ("tools.export", "--checkpoint w.pt --program good.jpg/new.pt2"),
    ("tools.export", "--checkpoint none.pt --program new.pt2"),
    ("tools.export", "--checkpoint w.pt --program w.pt"),
    ("tools.export", "--checkpoint w.pt --unknown 3"),
    ("tools.release", ""),
    ("tools.release", "--checkpoint w.pt --out w.pt"),
    ("tools.release", "--checkpoint w.pt --out none/new.pt"),
    ("tools.release", "--checkpoint w.pt --out good.jpg/new.pt"),
    ("tools.release", "--checkpoint w.pt --out . --overwrite"),
    ("tools.release", "--checkpoint none.pt --out new.pt"),
    ("tools.release", "--checkpoint w.pt --average --out new.pt"),
    ("tools.relabel", ""),
    ("tools.relabel", "--checkpoint w.pt --threshold 1 --out new"),
    ("tools.relabel", "--checkpoint w.pt --rare -1 --out new"),
    ("tools.relabel", "--checkpoint w.pt --out good.jpg"),
    ("tools.relabel", "--checkpoint w.pt --out good.jpg/new"),
    ("tools.relabel", "--checkpoint w.pt --dataset celebamask --data . --out new"),
    ("predict", "good.jpg --checkpoint w.pt --coloured out"),
    ("predict", "good.jpg --checkpoint w.pt --coloured good.jpg/out"),
    ("experiments.report", "--results none"),
    ("experiments.report", "--results good.jpg"),
    ("experiments.report", "--results . extra"),
    ("experiments.report", "--unknown"),
    ("hubconf", "none.pt"),
    ("hubconf", "w.pt nonsense"),
    ("hubconf", "w.pt cuda:99"),
    ("hubconf", "w.pt cpu:99"),
)


def option_cases() -> Iterator[Case]:
    make = two_photos(lambda path: None, "")
    scripts, turn = list(BASES), 0
    for option, values in NUMBERS.items():
        for value in values:
            turn += 1
            fit = [name for name in scripts if has_option(name, option)]
            for script in dict.fromkeys((fit[turn % len(fit)], fit[(turn + 3) % len(fit)])):
                words = [value] * 4 if script == "reproduce" and option == "--epochs" else [value]
                shown = value if len(value) < 30 else f"{len(value)} digits"
                yield Case(f"{script}: {option} {shown!r}", script, (*BASES[script], option, *words), make)
    for script, own in OWN_NUMBERS.items():
        for option, values in own.items():
            for value in values:
                yield Case(f"{script}: {option} {value!r}", script, (*BASES[script], option, value), make)
    for script, line in LINES:
        yield Case(f"{script}: {line or 'no options'}", script, tuple(line.split()), make)
    sheet = ("--dataset", "synthetic", "--split", "test", "--max-images", "1", "--out", "sheet.png")
    yield Case("tools.check: a sheet of drawn faces", "tools.check", sheet, make, (0,), ("sheet.png",))
    yield Case("tools.check: full disk", "tools.check", sheet, make, says="sheet.png", file_size=0)


def has_option(script: str, option: str) -> bool:
    if script == "predict":
        return option in ("--workers", "--batch-size", "--seed", "--device", "--amp", "--unknown")
    if script == "evaluate":
        return option not in ("--epochs", "--recipe")
    return True


def all_cases() -> list[Case]:
    groups = (
        checkpoint_cases,
        photo_cases,
        data_cases,
        list_cases,
        folder_cases,
        run_cases,
        chain_cases,
        report_cases,
        download_cases,
        option_cases,
    )
    return [case for group in groups for case in group()]


CASES = all_cases()


# the tests


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, helen_root: Path) -> Iterator[Kit]:
    scripts = Scripts()
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield Kit(tmp_path_factory.mktemp("kit"), helen_root, scripts, server.server_address[1])
        server.shutdown()
    scripts.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with case_folder() as made:
        yield made


def test_there_are_at_least_300_cases_each_with_a_name_of_its_own_and_some_for_every_script() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 300
    assert {case.script for case in CASES} == set(NAMES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_one_line_and_leaves_every_file_alone(case: Case, kit: Kit, folder: Path) -> None:
    case.make(kit, folder)
    before = snapshot(folder.parent)
    call = Call(
        case.script, [*kit.words.get(case.arguments[:1], case.arguments)], str(folder), case.memory, case.file_size
    )
    ended = kit.scripts.run(call)
    found = faults(case, ended, before, snapshot(folder.parent))
    assert not found, f"{found} {ended}"


def faults(case: Case, ended: Ended, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Everything that is not as promised."""
    found, lines = [], ended.stderr.splitlines()
    if ended.status is None:
        found.append(f"still running after {SECONDS} seconds")
    elif ended.status not in case.status:
        found.append(f"status {ended.status}, not {' or '.join(map(str, case.status))}")
    if "Traceback (most" in ended.stderr or ended.status == 70:
        found.append("a traceback")
    errors = [line for line in lines if line.startswith("error: ")]
    goes_on = case.script in ("predict", "retrieval.align")
    others = [line for line in lines if not line.startswith(("error: ", "failed: ")[: 1 + goes_on])]
    if len(errors) != (ended.status == 2):
        found.append(f"{len(errors)} lines of errors")
    if others:
        found.append(f"noise: {others[:3]}")
    names = max([0, *(len(os.path.basename(path)) for path in before)])
    if long := [len(line) for line in lines if len(line) > LONGEST + 2 * names * (names > 100)]:
        found.append(f"lines of {long} letters")
    if any(not letter.isprintable() and letter != "\n" for letter in ended.stderr):
        found.append("letters that do not print")
    if case.says and ended.status and not re.search(case.says, ended.stderr, re.MULTILINE):
        found.append(f"does not say {case.says}")
    allowed = tuple(f"case/{name}" for name in case.new)
    for path in sorted(before.keys() | after.keys()):
        regular = {entry[0] for entry in (before.get(path), after.get(path)) if entry} == {stat.S_IFREG}
        if os.path.basename(path) == "lock" and path in after and regular:
            continue  # a lock may be made, and opened anew
        if before.get(path) != after.get(path) and not path.startswith(allowed or ("\0",)):
            what = "removed" if path not in after else "made" if path not in before else "changed"
            found.append(f"{what}: {path}")
        if os.path.basename(path).startswith(".") and path.endswith(".part") and path not in before:
            found.append(f"left behind: {path}")
    return found


def test_a_fault_is_found() -> None:
    case = Case("", "evaluate", ())
    good = Ended(2, "", "error: one line\n")
    assert not faults(case, good, {}, {})
    for ended in (
        Ended(None, "", ""),
        Ended(0, "", ""),
        Ended(70, "", "Traceback (most recent call last):\n"),
        Ended(2, "", ""),
        Ended(2, "", "error: one\nerror: two\n"),
        Ended(2, "", "warning: x\nerror: one line\n"),
        Ended(2, "", "error: " + "x" * 600),
        Ended(2, "", "error: \x1b[31m\n"),
    ):
        assert faults(case, ended, {}, {}), ended
    for before, after in (({"case/a": (1,)}, {}), ({}, {"case/a": (1,)}), ({"case/a": (1,)}, {"case/a": (2,)})):
        assert faults(case, good, before, after)
        assert not faults(replace(case, new=("a",)), good, before, after)
