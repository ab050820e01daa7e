"""Hostile input to the guests: DeepLab's training, the layouts with one label map a face, and the retrieval scripts.

The same promises and the same machinery as in ``tests.test_hostile``, with files of its own to damage.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image

from data.labels import CELEBAMASK, LAPA
from models.deeplab import DeepLab, DeepLabConfig
from retrieval import align
from retrieval.network import KIND, EmbeddingConfig, InceptionResnetV1
from tests import damage, fixtures
from tests.fixtures import draw_faces
from tests.hostile import GUESTS, Call, Scripts, case_folder, snapshot
from tests.test_evaluate import save_models, save_parser
from tests.test_hostile import CPU, LISTS, LOGS, MACHINE, TRAINING, Case, content, copy_or_link, faults, mask, picture
from tests.test_resume import another_run
from tests.test_retrieval import write_people
from utils import checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each case runs in a forked process")

Make = Callable[["Kit", Path], object]
DEEPLAB = ("--dataset", "lapa", "--data", "lapa", "--input-size", "32", *TRAINING)
RESUMING = ("RESUMING",)  # stands for the options of the kit's training


class Kit:
    """Good files that the cases damage. scripts: see ``tests.hostile``."""

    def __init__(self, root: Path, scripts: Scripts) -> None:
        self.root, self.scripts = root, scripts
        faces = draw_faces(train=2, val=1, test=1)
        fixtures.write_lapa(root / "lapa", faces)
        fixtures.write_list(root / "list", faces)
        fixtures.write_helen_merged(root / "helen", faces)
        self.weights = {"end2end": Path(save_models(root)["end2end"])}
        for labels in (LAPA, CELEBAMASK):
            self.weights[labels.name] = root / f"{labels.name}.pt"
            save_parser(self.weights[labels.name], DeepLab(DeepLabConfig(32), labels), ("network",), "deeplab")
        options = [*MACHINE, *DEEPLAB, "--epochs", "2"]
        self.must_run("train_deeplab", *options)
        state = damage.load(root / "run" / "last.pt")
        checkpoint.save(root / "run" / "last.pt", {**state, "epoch": 0, "best": {**state["best"], "epoch": 0}})
        self.words = {RESUMING: [*options, "--resume"]}

        write_people(root / "people", {"ann": 3, "bob": 3})
        write_people(root / "asked", {"ann": 1, "bob": 1})
        (root / "photos" / "ann").mkdir(parents=True)
        face = Image.fromarray(skimage.data.astronaut()[:256, 96:352])
        face.save(root / "photos" / "ann" / "1.jpg")
        shutil.copytree(root / "photos" / "ann", root / "photos" / "bob")
        weights = {name: value.half() if value.is_floating_point() else value for name, value in network().items()}
        self.weights["identity"] = root / "identity.pt"
        state = {"stage": "identity2", "parser": KIND, "config": asdict(EmbeddingConfig()), "names": ""}
        checkpoint.save(self.weights["identity"], {**state, "modules": {"embedding": weights}})
        self.must_run("retrieval.align", "photos", "faces", *aligning()[2:])
        self.must_run("retrieval.search", *("found" if word == "out" else word for word in SEARCH))

    def must_run(self, script: str, *arguments: str) -> None:
        ended = self.scripts.run(Call(script, list(arguments), str(self.root), seconds=300))
        assert ended.status == 0, ended.stderr

    def copy(self, name: str, folder: Path, under: str = "") -> Path:
        """A folder of the kit in the case's folder; checkpoints are links, which the scripts replace whole."""
        target = folder / (under or name)
        shutil.copytree(self.root / name, target, copy_function=copy_or_link, dirs_exist_ok=True)
        return target


def network() -> dict[str, Any]:
    return InceptionResnetV1().state_dict()


def holding(*names: str) -> Make:
    """These folders of the kit."""

    def make(kit: Kit, folder: Path) -> None:
        for name in names:
            kit.copy(name, folder)

    return make


def replaced(names: tuple[str, ...], at: str, place: Callable[[Path], object]) -> Make:
    """Folders of the kit, where something else lies at one path."""

    def make(kit: Kit, folder: Path) -> None:
        holding(*names)(kit, folder)
        path = folder / at
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        place(path)

    return make


def weights(which: str, change: Callable[[dict[str, Any]], Any] | None = None, *names: str) -> Make:
    """Folders of the kit, and w.pt: one of its checkpoints, changed or as it is."""

    def make(kit: Kit, folder: Path) -> None:
        holding(*names)(kit, folder)
        if change is None:
            os.link(kit.weights[which], folder / "w.pt")
        else:
            damage.save(change(damage.copied(damage.load(kit.weights[which]))), folder / "w.pt")

    return make


def text(value: str) -> Callable[[Path], object]:
    return content(value.encode())


# training DeepLab

DEEPLAB_OPTIONS: tuple[tuple[str, str], ...] = (
    ("--input-size", "31"),
    ("--input-size", "2049"),
    ("--input-size", "x"),
    ("--batch-size", "1"),
    ("--batch-size", "3"),
    ("--lr", "nan"),
    ("--lr", "0"),
    ("--epochs", "0"),
    ("--recipe", "paper"),
    ("--partition", "paper"),
    ("--labels", "celebamask"),
    ("--data", "nowhere"),
    ("--init-from", "none.pt"),
    ("--run-dir", "lapa/train/images/0.jpg"),
    ("--crop-size", "32"),
)
STARTS: dict[str, Make] = {
    "empty": replaced(("lapa",), "w.pt", content(b"")),
    "text": replaced(("lapa",), "w.pt", text("weights")),
    "pipe": replaced(("lapa",), "w.pt", damage.SPECIAL["pipe"]),
    "folder": replaced(("lapa",), "w.pt", damage.SPECIAL["folder"]),
    "of another parser": weights("end2end", None, "lapa"),
    "of another label set": weights("celebamask", None, "lapa"),
    "NaN": weights("lapa", damage.CHECKPOINT_STATES["NaN"], "lapa"),
    "half of the channels": weights("lapa", damage.CHECKPOINT_STATES["half of the channels"], "lapa"),
    "config of another type": weights("lapa", damage.with_value("config", "size", value=32.5), "lapa"),
    "an unknown parser": weights("lapa", damage.with_value("parser", value="identity"), "lapa"),
    "the team's own, for 19 labels": weights("celebamask", lambda state: state["modules"]["network"], "lapa"),
    "the team's own, a text among its tensors": weights(
        "lapa", lambda state: {**state["modules"]["network"], "epoch": "x"}, "lapa"
    ),
}
RUN_STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "without optimizer": damage.without("optimizer"),
    "optimizer's state of texts": damage.with_value("optimizer", "state", value={0: "x"}),
    "epoch far ahead": damage.with_value("epoch", value=10**9),
    "best None": damage.with_value("best", value=None),
    "NaN": damage.every_network(damage.filled(damage.NAN)),
    "another stage": damage.with_value("stage", value="stage1"),
}


def deeplab_cases() -> Iterator[Case]:
    def training(name: str, make: Make, *more: str, new: tuple[str, ...] = ("cache", "run"), **about: Any) -> Case:
        return Case(f"train_deeplab: {name}", "train_deeplab", (*DEEPLAB, *more), make, new=new, **about)

    for option, value in DEEPLAB_OPTIONS:
        says = "" if option in ("--data", "--run-dir", "--lr", "--init-from") else option
        new = ("cache", "run") if value == "3" else ("cache",)
        yield training(f"{option} {value}", holding("lapa"), option, value, new=new, says=says)
    for name, make in STARTS.items():
        yield training(f"--init-from, {name}", make, "--init-from", "w.pt", new=(), says=r"w\.pt")
    black = mask(np.zeros((64, 64), np.uint8))
    yield training(
        "labels are all background",
        both_of(replaced(("lapa",), "lapa/train/labels/0.png", black), replaced((), "lapa/train/labels/1.png", black)),
        says="background",
    )
    yield training("used run folder", holding("lapa", "run"), new=(), says="--resume")
    yield training("full disk", holding("lapa"), file_size=0)

    def resuming(name: str, make: Make, *more: str, status: tuple[int, ...] = (2,), says: str = "") -> Case:
        new = ("cache", "run") if 0 in status else ("cache",)
        return Case(f"train_deeplab: {name}", "train_deeplab", (*RESUMING, *more), make, status, new, says)

    last = "run/last.pt"
    for name in ("empty", "truncated at 50%"):

        def damaged(kit: Kit, folder: Path, name: str = name) -> None:
            good = (kit.root / last).read_bytes()
            replaced(("lapa", "run"), last, content(damage.CHECKPOINT_BYTES[name](good)))(kit, folder)

        yield resuming(f"last.pt, {name}", damaged, says=r"last\.pt")
    for name, change in RUN_STATES.items():

        def changed(kit: Kit, folder: Path, change: Callable = change) -> None:
            holding("lapa", "run")(kit, folder)
            (folder / last).unlink()
            damage.save(change(damage.copied(damage.load(kit.root / last))), folder / last)

        yield resuming(f"last.pt, {name}", changed, says=r"last\.pt")
    yield resuming("last.pt, missing", replaced(("lapa", "run"), last, damage.SPECIAL["missing"]), says=r"best\.pt")
    for name in ("not JSON", "half a line"):
        yield resuming(
            f"log.jsonl, {name}", replaced(("lapa", "run"), "run/log.jsonl", content(LOGS[name])), status=(0, 2)
        )
    for option, value in (("--input-size", "48"), ("--recipe", "seed"), ("--seed", "3"), ("--epochs", "3")):
        yield resuming(f"resumed with {option} {value}", holding("lapa", "run"), option, value, says="repeat its")
    other = replaced(("lapa", "run"), "lapa/train/images/0.jpg", picture(damage.jpeg))
    yield resuming("resumed with other photos", both_of(other, darker), says="repeat its")
    on = holding("lapa", "list", "run")
    yield resuming(
        "resumed with another data set", on, "--dataset", "list", "--data", "list", "--labels", "lapa", says="repeat"
    )


def darker(kit: Kit, folder: Path) -> None:
    path = folder / "lapa/train/images/0.jpg"
    Image.open(path).point(lambda value: value // 2).save(path)


def both_of(*makes: Make) -> Make:
    def make(kit: Kit, folder: Path) -> None:
        for each in makes:
            each(kit, folder)

    return make


EAGRNET = ("--dataset", "lapa", "--data", "lapa", "--input-size", "65", *TRAINING)
EDGES = ("--dataset", "lapa", "--data", "lapa", "--split", "train", "--out", "edges")


def eagrnet_cases() -> Iterator[Case]:
    for option, value in (("--input-size", "63"), ("--batch-size", "1"), ("--epochs", "0"), ("--recipe", "paper")):
        arguments = (*EAGRNET, option, value)
        yield Case(
            f"train_eagrnet: {option} {value}", "train_eagrnet", arguments, holding("lapa"), new=("cache",), says=option
        )
    starts = {
        "--init-from, pipe": (STARTS["pipe"], "w.pt"),
        "--init-from of DeepLab": (weights("lapa", None, "lapa"), "w.pt"),
        "--imagenet of DeepLab": (weights("lapa", None, "lapa"), "--imagenet w.pt"),
        "--imagenet, text": (STARTS["text"], "--imagenet w.pt"),
        "--imagenet, folder": (STARTS["folder"], "--imagenet w.pt"),
    }
    for name, (make, says) in starts.items():
        arguments = (*EAGRNET, name.partition(" ")[0].rstrip(","), "w.pt")
        yield Case(f"train_eagrnet: {name}", "train_eagrnet", arguments, make, new=("cache",), says=says)


def edge_cases() -> Iterator[Case]:
    def case(name: str, make: Make, *more: str, new: tuple[str, ...] = (), **about: Any) -> Case:
        return Case(f"tools.edges: {name}", "tools.edges", (*EDGES, *more), make, new=new, **about)

    yield case("no data", holding(), says="lapa does not exist")
    yield case("out of other files", holding("lapa"), "--out", "lapa/train/labels", says="holds something else")
    yield case("out is a file", replaced(("lapa",), "edges", text("1")), says="--out edges")
    yield case("full disk", holding("lapa"), new=("edges",), says="--out edges", file_size=0)
    strange = replaced(("lapa",), "lapa/train/labels/1.png", mask_of(11))
    yield case("ids that are none", strange, new=("edges",), says="unknown ids")
    yield case("list without labels", holding("list"), "--dataset", "list", "--data", "list", says="--labels")


# layouts with one label map a face

READERS: dict[str, tuple[str, ...]] = {
    "train_deeplab": ("--input-size", "32", *TRAINING),
    "tools.check": ("--split", "train"),
    "evaluate": ("--checkpoint", "w.pt", "--split", "train", *MACHINE, "--cache", "cache"),
    "train_stage1": ("--coarse-size", "16", *TRAINING),
}


def mask_of(value: int, side: int = 64) -> Callable[[Path], object]:
    ids = np.zeros((side, side), np.uint8)
    ids[0, 0] = value
    return mask(ids)


def emptied(*folders: str) -> Make:
    def make(kit: Kit, folder: Path) -> None:
        for path in (path for each in folders for path in (folder / each).iterdir()):
            path.unlink()

    return make


LAPA_FAULTS: dict[str, tuple[Make, str]] = {
    **{
        f"{at}, {name}": (replaced(("lapa",), f"lapa/{at}", damage.SPECIAL[name]), says)
        for at, name, says in (
            ("train/labels", "missing", "no folder .*labels"),
            ("train/labels", "pipe", "no folder .*labels"),
            ("train/images", "link to itself", "no folder .*images"),
            ("train/labels/0.png", "missing", "photos without mask"),
            ("train/images/1.jpg", "missing", "masks without photo"),
            ("train/labels/0.png", "pipe", r"0\.png"),
            ("train/labels/0.png", "endless device", r"0\.png"),
            ("train/images/0.jpg", "folder", r"0\.jpg"),
            ("", "empty device", ""),
        )
    },
    **{
        f"label map {name}": (replaced(("lapa",), "lapa/train/labels/0.png", place), says)
        for name, place, says in (
            ("of another size", mask_of(1, 32), "sizes differ"),
            ("with id 11", mask_of(11), r"unknown ids .* \(11\)"),
            ("with id 255", mask_of(255), r"unknown ids .* \(255\)"),
            ("as colours", mask(fixtures.draw_face(64)[0]), "colours"),
            ("that is a JPEG", picture(damage.jpeg), "PNG"),
            ("cut off", picture(damage.BAD_PICTURES["PNG, 70% of it"]), r"0\.png"),
        )
    },
    "photo cut off": (
        replaced(("lapa",), "lapa/train/images/0.jpg", picture(damage.BAD_PICTURES["JPEG, 30% of it"])),
        r"0\.jpg",
    ),
    "two photos of one name": (
        replaced(("lapa",), "lapa/train/images/00.png", picture(damage.jpeg)),
        "two files for one name",
    ),
    "an empty split": (
        both_of(holding("lapa"), emptied("lapa/train/images", "lapa/train/labels")),
        "no faces for split train",
    ),
    "brows and eyes disagree": (
        both_of(holding("lapa"), lambda kit, folder: swap(folder / "lapa/train/labels", 2, 3)),
        "disagree",
    ),
}


def swap(masks: Path, one: int, other: int) -> None:
    lut = np.arange(256, dtype=np.uint8)
    lut[[one, other]] = other, one
    for path in masks.iterdir():
        Image.fromarray(lut[np.array(Image.open(path))]).save(path)


GOOD_LINE = b"images/0.jpg labels/0.png\n"
LINES: dict[str, tuple[bytes, str]] = {
    "one column": (b"images/0.jpg\n", "line 2"),
    "three columns": (b"images/0.jpg labels/0.png 3\n", "line 2"),
    "a path that leaves the folder": (b"../outside/sentinel.txt labels/1.png\n", "line 2"),
    "a path from the root": (b"images/1.jpg /etc/passwd\n", "line 2"),
    "a path that does not exist": (b"images/9.jpg labels/9.png\n", r"not in list: 2 \("),
    "a line twice": (GOOD_LINE, "listed twice"),
    "photo and map exchanged": (b"labels/1.png images/1.jpg\n", r"1\.jpg"),
    "the photo as map": (b"images/1.jpg images/1.jpg\n", r"1\.jpg"),
    "a folder as photo": (b"images labels/1.png\n", "not in list"),
    "a zero byte": (b"images/1\0.jpg labels/1.png\n", "line 2"),
    "an escape sequence": (b"images/\x1b[31m.jpg labels/1.png\n", ""),
    "names of 5,000 letters": (b"n" * 5000 + b" " + b"m" * 5000 + b"\n", "line 2"),
    "no UTF-8": (b"images/\xe9.jpg labels/1.png\n", "UTF-8"),
    "no line more, and binary bytes": (bytes(range(256)), ""),
}


def list_cases() -> Iterator[tuple[str, tuple[str, ...], Make, str]]:
    helen = ("--dataset", "list", "--data", "list", "--labels", "helen")
    at = "list/train_list.txt"
    for name, (line, says) in LINES.items():
        yield f"list, {name}", helen, replaced(("list",), at, content(GOOD_LINE + line)), says
    for name in ("empty", "blank lines", "zeros", "UTF-16", "noise"):
        yield f"list, {name}", helen, replaced(("list",), at, content(LISTS[name])), "train_list"
    for name in ("missing", "pipe", "endless device", "link to itself", "folder"):
        yield f"list, {name}", helen, replaced(("list",), at, damage.SPECIAL[name]), "train_list"
    nine = (*helen[:-1], "nine")
    yield "list, ids outside the label set", nine, holding("list"), "unknown ids"
    other = replaced(("list",), "list/labels/0.png", mask_of(1, 32))
    yield "list, a map of another size", helen, other, "sizes differ"


MERGED_FAULTS: dict[str, tuple[Make, str]] = {
    f"{at}, {name}": (replaced(("helen",), f"helen/{at}", place), says)
    for at, name, place, says in (
        ("labels/0.png", "id 11", mask_of(11), r"unknown ids .* \(11\)"),
        ("labels/0.png", "another size", mask_of(1, 65), "sizes differ"),
        ("labels/0.png", "missing", damage.SPECIAL["missing"], r"1 \(0\)"),
        ("labels/0.png", "socket", damage.SPECIAL["socket"], r"0\.png"),
        ("labels/0.png", "16 bits", mask(np.full((64, 64), 40_000, np.uint16)), "16-bit"),
        ("images/1.jpg", "missing", damage.SPECIAL["missing"], r"1 \(1\)"),
        ("exemplars.txt", "a name twice", text("1 , 0\n2 , 1\n3 , 0\n"), r"twice.* 1 \(0\)"),
        ("tuning.txt", "a name of the training list", text("1 , 0\n"), r"both in .* 1 \(0\)"),
        ("labels", "no maps at all", damage.SPECIAL["folder"], ""),
    )
}


def layout_cases() -> Iterator[Case]:
    groups = [
        *((f"LaPa, {name}", ("--dataset", "lapa", "--data", "lapa"), *item) for name, item in LAPA_FAULTS.items()),
        *list_cases(),
        *((f"HELEN, {name}", ("--dataset", "helen", "--data", "helen"), *item) for name, item in MERGED_FAULTS.items()),
    ]
    quick = [reader for reader in READERS if reader != "evaluate"]
    for turn, (name, data, make, says) in enumerate(groups):
        reader = "evaluate" if turn % 7 == 6 else quick[turn % len(quick)]
        reader, more = ("tools.check", ("--split", "val")) if "tuning" in name else (reader, READERS[reader])
        status = (1, 2) if reader == "tools.check" else (2,)
        make = both_of(weights("end2end"), make)
        yield Case(f"{reader}: {name}", reader, (*data, *more), make, status, ("cache", "run"), says)


# --labels that a data set cannot serve

LABELS: tuple[tuple[str, str, str], ...] = (
    ("train_deeplab", "--dataset list --data list", "--labels is needed"),
    ("train_deeplab", "--dataset synthetic --labels celebamask", "--labels celebamask"),
    ("train_deeplab", "--dataset helen --data helen --labels celebamask", "--labels celebamask"),
    ("train_deeplab", "--dataset list --data list --labels eleven", "--labels"),
    ("train_stage1", "--dataset list --data list", "--labels is needed"),
    ("train_stage1", "--dataset lapa --data lapa --labels lapa", "--labels lapa"),
    ("train_stage2", "--dataset list --data list --labels nine", "unknown ids"),
    ("train_cropper", "--dataset synthetic --labels helen --init-from w.pt", "--labels helen"),
    ("train_end2end", "--dataset helen --data helen --labels nine --init-from w.pt", "--labels nine"),
    ("reproduce", "--dataset list --data list", "--labels is needed"),
    ("evaluate", "--dataset list --data list", "--labels is needed"),
    ("evaluate", "--dataset list --data list --labels nine --checkpoint w.pt", "unknown ids"),
    ("evaluate", "--dataset list --data list --labels helen --checkpoint celebamask.pt", "does not tell eye_g"),
    ("evaluate", "--dataset lapa --data lapa --labels helen", "--labels helen"),
    ("evaluate", "--predictions list/labels --truth list/labels --ids nine --labels celebamask", "does not tell"),
    ("evaluate", "--predictions list/labels --truth list/labels --ids helen --labels nineteen", "--labels"),
    ("tools.check", "--dataset list --data list", "--labels"),
    ("tools.check", "--dataset helen --data helen --labels nine", "--labels nine"),
    ("tools.check", "--dataset synthetic --labels nine --max-images 1", "--labels nine"),
    ("tools.check", "--dataset list --data list --labels 3", "--labels"),
)


def label_cases() -> Iterator[Case]:
    def make(kit: Kit, folder: Path) -> None:
        weights("end2end", None, "lapa", "list", "helen")(kit, folder)
        os.link(kit.weights["celebamask"], folder / "celebamask.pt")

    for script, line, says in LABELS:
        own = {"tools.check": (), "evaluate": MACHINE, "reproduce": ("--out", "out", *CPU)}
        machine = own.get(script, ("--max-images", "2", "--batch-size", "2", "--run-dir", "run", *MACHINE))
        if script != "tools.check":
            machine += ("--cache", "cache")
        yield Case(f"{script}: {line}", script, (*line.split(), *machine), make, new=("cache", "run"), says=says)


# retrieval


def aligning(*more: str) -> tuple[str, ...]:
    return ("photos", "out", "--workers", "1", *more)


def aligned(at: str, place: Callable[[Path], object]) -> Make:
    """Photos, and faces that were cut out of them; something else lies at one path of these."""

    def make(kit: Kit, folder: Path) -> None:
        photos, settings = kit.copy("photos", folder), kit.copy("faces", folder, "out") / align.SETTINGS
        settings.write_text(settings.read_text().replace(str(kit.root / "photos"), str(photos)))
        replaced((), f"out/{at}", place)(kit, folder)

    return make


def photo_at(at: str, place: Callable[[Path], object]) -> Make:
    return replaced(("photos",), f"photos/{at}", place)


def faceless(path: Path) -> None:
    shutil.rmtree(path.parent)
    (path.parent / "ann").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(path.parent / "ann" / "1.png")


ALIGN_OPTIONS: tuple[tuple[str, str], ...] = (
    ("photos out --image-size 15", "--image-size 15"),
    ("photos out --margin -1", "--margin -1"),
    ("photos out --workers 0", "--workers 0"),
    ("photos out --detector hog", "--detector"),
    ("photos photos", "whose folders"),
    ("photos photos/ann/out", "whose folders"),
    ("photos link/out", "whose folders"),
    ("photos .", "holds other files"),
    ("photos photos/ann/1.jpg", ""),
    ("none out", "none"),
    ("photos/ann/1.jpg out", "cannot list"),
    ("photos/ann out", "holds no people"),
    ("photos", "OUT"),
)
RECORDS: dict[str, bytes] = {
    "noise": damage.BAD_PICTURES["noise"](),
    "lists": b"[1]\n",
    "no box": b'{"photo": "ann/1.jpg"}\n',
    "a photo that is a number": b'{"photo": 3, "box": null}\n',
    "cut off": b'{"photo": "ann/1.jpg", "fa',
}


def align_cases() -> Iterator[Case]:
    def aligning_case(name: str, make: Make, status: tuple[int, ...] = (2,), says: str = "", **about: Any) -> Case:
        about.setdefault("new", ("out",) if set(status) & {0, 1} else ())
        return Case(f"retrieval.align: {name}", "retrieval.align", aligning(), make, status, says=says, **about)

    def linked(kit: Kit, folder: Path) -> None:
        kit.copy("photos", folder)
        (folder / "link").symlink_to("photos")

    for line, says in ALIGN_OPTIONS:
        yield Case(f"retrieval.align: {line}", "retrieval.align", tuple(line.split()), linked, says=says)
    for name in ("JPEG, 30% of it", "empty", "PNG that promises 60000 x 60000"):
        make = photo_at("ann/1.jpg", picture(damage.BAD_PICTURES[name]))
        yield aligning_case(f"photo, {name}", make, (1,), r"^failed: .*ann/1\.jpg")
    for name in ("pipe", "link to itself"):
        make = photo_at("ann/1.jpg", damage.SPECIAL[name])
        yield aligning_case(f"photo, {name}", make, (1,), r"^failed: .*ann/1\.jpg")
    huge = photo_at("ann/1.jpg", lambda path: Image.new("L", (12_000, 12_000), 99).save(path))
    yield aligning_case("a photo of 12000 x 12000 in little memory", huge, (1,), r"^failed: .*1\.jpg", memory=700 << 20)
    yield aligning_case("a person without photos", photo_at("cid", damage.SPECIAL["folder"]), says=r"1 \(cid\)")
    yield aligning_case("no face in any photo", photo_at("x", faceless), new=("out",), says="no face in any")
    for name in ("empty", "pipe", "link to itself"):
        place = damage.SPECIAL.get(name, content(b""))
        yield aligning_case(f"among the people, {name}", photo_at("notes.txt", place), (0,))
    yield aligning_case("two photos of one name", photo_at("ann/1.png", picture(damage.jpeg)), says="two files")
    for name, person in (("line break", "a\nb"), ("not UTF-8", os.fsdecode(b"\xe9"))):
        make = photo_at(f"{person}/1.jpg", picture(damage.jpeg))
        yield aligning_case(f"a person's name, {name}", make, says="rename")
        make = photo_at(f"bob/{person}.jpg", picture(damage.jpeg))
        yield aligning_case(f"a photo's name, {name}", make, says="rename")
    for person in (align.RECORD, align.SETTINGS):
        make = photo_at(f"{person}/1.jpg", picture(damage.jpeg))
        yield aligning_case(f"a person called {person}", make, says="rename")
    for name in ("pipe", "endless device", "link to itself", "link to nothing"):
        yield aligning_case(f"OUT, {name}", replaced(("photos",), "out", damage.SPECIAL[name]))
    yield aligning_case(
        "OUT holds other files", replaced(("photos",), "out/mine.txt", text("mine")), says="other files"
    )
    for name in ("pipe", "folder", "link outside"):
        place = damage.SPECIAL.get(name, lambda path: path.symlink_to("../../outside/new"))
        yield aligning_case(f"{align.RECORD}, {name}", aligned(align.RECORD, place))
        yield aligning_case(f"{align.SETTINGS}, {name}", aligned(align.SETTINGS, place))
    for name, value in RECORDS.items():
        status = (0,) if name == "cut off" else (2,)
        yield aligning_case(f"{align.RECORD}, {name}", aligned(align.RECORD, content(value)), status)
    for name, value in (("empty", b""), ("a list", b"[]"), ("other values", b'{"detector": "' + b"x" * 5000 + b'"}')):
        yield aligning_case(f"{align.SETTINGS}, {name}", aligned(align.SETTINGS, content(value)), says="align.json|out")
    yield aligning_case("a file in place of a person", aligned("ann", text("mine")))
    yield aligning_case("a folder in place of a face", aligned("ann/1.png", damage.SPECIAL["folder"]), (0, 2))

    def other_people(kit: Kit, folder: Path) -> None:
        kit.copy("photos", folder)
        kit.copy("faces", folder, "out")

    yield aligning_case("OUT holds the faces of another IN", other_people, says=r"otherwise \(source")
    yield aligning_case("full disk", holding("photos"), new=("out",), file_size=0)
    yield aligning_case("full disk after some", holding("photos"), new=("out",), file_size=2000)


SEARCH = ("people", "asked", "--checkpoint", "raw", "--out", "out", "--overwrite", *MACHINE)
ARRAYS: dict[str, Callable[[dict[str, np.ndarray]], dict[str, Any]]] = {
    "of another checkpoint": lambda held: {**held, "checkpoint": np.array("f" * 64)},
    "of another size": lambda held: {**held, "embeddings": held["embeddings"][:, :9]},
    "NaN": lambda held: {**held, "embeddings": held["embeddings"] * np.float32(np.nan)},
    "labels outside": lambda held: {**held, "labels": held["labels"] + 9},
    "names that are numbers": lambda held: {**held, "names": np.arange(2)},
    "no paths": lambda held: {name: value for name, value in held.items() if name != "paths"},
    "photos that are gone": lambda held: {**held, "paths": np.char.add(held["paths"], ".gone")},
    "objects": lambda held: {**held, "names": np.array([damage.Runs(), None], object)},
    "four faces": lambda held: {
        **held,
        **{name: held[name][:4] for name in ("paths", "labels", "embeddings")},
    },
}


def searched(change: Callable[[Path], object]) -> Make:
    """Good faces, and the embeddings of the gallery that a search of them has written, changed."""

    def make(kit: Kit, folder: Path) -> None:
        holding("people", "asked")(kit, folder)
        change(kit.copy("found", folder, "out") / "gallery.npz")

    return make


def rewritten(change: Callable[[dict[str, np.ndarray]], dict[str, Any]]) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        with np.load(path) as held:
            arrays = dict(held)
        np.savez(path, **change(arrays))

    return make


SEARCH_LINES: tuple[tuple[str, str], ...] = (
    ("people none --checkpoint raw --out out", "none"),
    ("people asked --checkpoint none.pt --out out", r"none\.pt"),
    ("people asked --checkpoint raw --out people/ann/0.png", "--out"),
    ("people asked --checkpoint raw --out people", "--out people"),
    ("people asked --checkpoint raw --out people/out", "--out people/out"),
    ("people asked --checkpoint raw --out asked/ann/out", "--out asked/ann/out"),
    ("people asked --checkpoint raw --out out --predictions ../a.txt", "--predictions"),
    ("people asked --checkpoint raw --out out --index annoy", "--index"),
    ("people asked --checkpoint raw --out out --device cuda:99", "--device"),
    ("people/ann asked --checkpoint raw --out out", "holds no people"),
    ("people people/ann/0.png --checkpoint raw --out out", "cut out"),
    ("people/ann/0.png asked --checkpoint raw --out out", "no file of embeddings"),
    ("people asked --checkpoint w.pt --out out", "not an identity embedding"),
)


def search_cases() -> Iterator[Case]:
    def searching(name: str, make: Make, *more: str, status: tuple[int, ...] = (2,), says: str = "") -> Case:
        new = ("out",) if 0 in status else ("out/gallery.npz", "out/queries.npz")
        where = ("out",) if name.startswith(("first", "full")) else new
        return Case(f"retrieval.search: {name}", "retrieval.search", (*SEARCH, *more), make, status, where, says)

    def first(name: str, make: Make, *more: str, says: str = "") -> Case:
        return searching(f"first, {name}", make, *more, says=says)

    for line, says in SEARCH_LINES:
        make = weights("end2end", None, "people", "asked")
        words = (*line.split(), "--workers", "0")
        yield Case(f"retrieval.search: {line}", "retrieval.search", words, make, new=("out",), says=says)
    yield first(
        "a person without photos", replaced(("people", "asked"), "people/cid", damage.SPECIAL["folder"]), says="cid"
    )
    small = replaced(
        ("people", "asked"), "people/bob/x", lambda path: [p.unlink() for p in [*path.parent.iterdir()][1:]]
    )
    yield first("a gallery of four", small, says="5 or more")
    for at, name in (("people/ann/0.png", "JPEG, 30% of it"), ("asked/ann/0.png", "empty")):
        bad = replaced(("people", "asked"), at, picture(damage.BAD_PICTURES[name]))
        yield first(f"photo in {at[:6]}, {name}", bad, says=at)
    for name in ("endless device", "folder"):
        bad = replaced(("people", "asked"), "people/ann/0.png", damage.SPECIAL[name])
        yield first(f"photo, {name}", bad, says=r"people/ann/0\.png")
    beside = replaced(("people", "asked"), "people/notes.txt", text("mine"))
    yield searching("a file among the people", beside, status=(0,))
    for name in ("pipe", "link to itself"):
        beside = replaced(("people", "asked"), "people/notes.txt", damage.SPECIAL[name])
        yield searching(f"among the people, {name}", beside, status=(0,))
    broken = replaced(("people", "asked"), "people/a\nb/1.png", picture(damage.jpeg))
    yield first("a person's name with a line break", broken, says="rename")
    foreign = os.fsdecode(b"people/\xe9/1.png")
    yield first(
        "a person's name that is not UTF-8", replaced(("people", "asked"), foreign, picture(damage.jpeg)), says="rename"
    )
    file = ("out/gallery.npz", "asked", *SEARCH[2:])
    for name, change in ARRAYS.items():
        make = searched(rewritten(change))
        says = "another checkpoint" if name == "of another checkpoint" else ""
        yield Case(f"retrieval.search: a file, {name}", "retrieval.search", file, make, new=(), says=says)
    for name in ("of another checkpoint", "of another size", "NaN", "objects"):
        yield searching(f"kept embeddings, {name}", searched(rewritten(ARRAYS[name])), status=(0, 2))
    for name in ("empty", "truncated at 50%", "picture"):
        cut = searched(lambda path, name=name: path.write_bytes(damage.CHECKPOINT_BYTES[name](path.read_bytes())))
        yield Case(
            f"retrieval.search: a file, {name}", "retrieval.search", file, cut, new=(), says="no file of embeddings"
        )
    for name in ("pipe", "link to itself", "folder"):
        place = searched(lambda path, name=name: (path.unlink(), damage.SPECIAL[name](path)))
        yield searching(f"kept embeddings, {name}", place, status=(0, 2))
    place = replaced(("people", "asked"), "out/scores.json", damage.SPECIAL["folder"])
    yield Case(
        "retrieval.search: a folder in place of the scores",
        "retrieval.search",
        SEARCH,
        place,
        new=("out",),
        says="out/scores.json",
    )
    yield Case(
        "retrieval.search: full disk", "retrieval.search", SEARCH, holding("people", "asked"), new=("out",), file_size=0
    )
    for name, change in (
        ("NaN", damage.every_network(damage.filled(damage.NAN))),
        ("weights so large that embeddings overflow", damage.every_network(lambda tensor: tensor.double() * 1e39)),
        ("config out of range", lambda state: {**state, "config": {"size": 9}, "modules": {"embedding": {}}}),
    ):
        make = weights("identity", change, "people", "asked")
        yield first(f"weights, {name}", make, "--checkpoint", "w.pt", says=r"w\.pt|--checkpoint")
    for name in ("empty", "text", "truncated at 50%", "pipe"):

        def damaged(kit: Kit, folder: Path, name: str = name) -> None:
            holding("people", "asked")(kit, folder)
            if name in damage.SPECIAL:
                damage.SPECIAL[name](folder / "w.pt")
            else:
                good = kit.weights["identity"].read_bytes()
                (folder / "w.pt").write_bytes(damage.CHECKPOINT_BYTES[name](good))

        yield first(f"weights, {name}", damaged, "--checkpoint", "w.pt", says=r"w\.pt")


TRAIN = ("--data", "people", "--run-dir", "run", "--batch-size", "2", "--epochs", "1", *MACHINE)
TRAIN_LINES: tuple[tuple[str, str], ...] = (
    ("--data none", "none"),
    ("--data people/ann", "holds no people"),
    ("--data people/ann/0.png", "cannot list"),
    ("--batch-size 1", "--batch-size 1"),
    ("--batch-size 6", "--batch-size 6"),
    ("--epochs 0", "--epochs 0"),
    ("--recipe best", "--recipe"),
    ("--step 3", "--step"),
    ("--step 1", "--step 1"),
    ("--seed -1", "--seed"),
    ("--device meta", "--device"),
    ("--run-dir people/run", "--run-dir people/run"),
    ("--run-dir people/ann/0.png", "--run-dir"),
    ("--init-from none.pt", r"none\.pt"),
    ("--init-from w.pt", "not an identity embedding"),
    ("--pretrained w.pt", "--init-from"),
    ("--pretrained none.pt", r"none\.pt"),
    ("--pretrained w.pt --init-from w.pt", "give one"),
    ("--lr 0.1", "--lr"),
)


def train_cases() -> Iterator[Case]:
    def training(name: str, make: Make, *more: str, new: tuple[str, ...] = (), says: str = "", **about: Any) -> Case:
        return Case(f"retrieval.train: {name}", "retrieval.train", (*TRAIN, *more), make, new=new, says=says, **about)

    for line, says in TRAIN_LINES:
        yield training(line, weights("end2end", None, "people"), *line.split(), says=says)
    people = ("people",)
    yield training("a person without photos", replaced(people, "people/cid", damage.SPECIAL["folder"]), says="cid")
    yield training("one person only", replaced(people, "people/bob", damage.SPECIAL["missing"]), says="one person")
    few = replaced(people, "people/bob", lambda path: (path.mkdir(), Image.new("RGB", (9, 9)).save(path / "1.png")))
    yield training("too few photos to look among", few, says="5 or more")
    yield training("a corrupt photo", replaced(people, "people/ann/0.png", content(b"no")), says=r"ann/0\.png")
    yield training("a photo that is a pipe", replaced(people, "people/ann/0.png", damage.SPECIAL["pipe"]), says="0.png")
    for name in ("pipe", "link to itself"):
        yield training(f"run folder, {name}", replaced(people, "run", damage.SPECIAL[name]), says="--run-dir")
    used = replaced(people, "run/last.pt", content(b"mine"))
    yield training("used run folder", used, says="--resume")
    for name in ("empty", "text"):
        bad = replaced(people, "w.pt", content(damage.CHECKPOINT_BYTES[name](b"")))
        yield training(f"--pretrained, {name}", bad, "--pretrained", "w.pt", says=r"w\.pt")
    for name, change in (
        ("of another shape", lambda state: halved(state["modules"]["embedding"])),
        ("nothing but classes", lambda state: {"logits.weight": damage.torch.ones(3)}),
    ):
        yield training(
            f"--pretrained, {name}", weights("identity", change, *people), "--pretrained", "w.pt", says="w.pt"
        )
    for name, change in (
        ("of other people", lambda state: state),
        ("without weights", damage.with_value("modules", value={})),
    ):
        yield training(f"--init-from, {name}", weights("identity", change, *people), "--init-from", "w.pt", says="w.pt")
    yield training("full disk", holding("people"), new=("run",), file_size=0)
    for name, state in (
        ("empty", None),
        ("of another stage", {"stage": "identity1"}),
        ("of other people", {"stage": "identity2", **dict.fromkeys(("modules", "optimizer", "epoch", "best"))}),
    ):

        def resumed(kit: Kit, folder: Path, state: dict[str, Any] | None = state) -> None:
            holding("people")(kit, folder)
            (folder / "run").mkdir()
            if state is None:
                (folder / "run" / "last.pt").write_bytes(b"")
            else:
                checkpoint.save(folder / "run" / "last.pt", {"parser": KIND, "people": 3, **state})

        yield training(f"last.pt, {name}", resumed, "--resume", says=r"last\.pt")


def halved(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "last_linear.weight": state["last_linear.weight"][:256].clone()}


def all_cases() -> list[Case]:
    groups = (
        deeplab_cases,
        eagrnet_cases,
        edge_cases,
        layout_cases,
        label_cases,
        align_cases,
        search_cases,
        train_cases,
    )
    return [case for group in groups for case in group()]


CASES = all_cases()


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    scripts = Scripts()
    yield Kit(tmp_path_factory.mktemp("kit"), scripts)
    scripts.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with case_folder() as made:
        yield made


def test_every_guest_has_cases_and_every_case_a_name_of_its_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150
    assert {case.script for case in CASES} >= set(GUESTS)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_one_line_and_leaves_every_file_alone(case: Case, kit: Kit, folder: Path) -> None:
    case.make(kit, folder)
    before = snapshot(folder.parent)
    words = [*kit.words.get(case.arguments[:1], case.arguments[:1]), *case.arguments[1:]]
    ended = kit.scripts.run(Call(case.script, words, str(folder), case.memory, case.file_size))
    told = ended.stdout + ended.stderr  # tools.check prints its problems
    if case.script == "tools.check" and re.search(case.says, told):
        case = replace(case, says="")
    found = faults(case, ended, before, snapshot(folder.parent))
    assert not found, f"{found} {ended}"


@pytest.mark.parametrize(
    ("script", "arguments", "names", "lock"),
    [
        ("train_deeplab", DEEPLAB, ("lapa",), "run"),
        ("retrieval.train", TRAIN, ("people",), "run"),
        ("retrieval.align", aligning(), ("photos",), "out"),
        ("retrieval.search", SEARCH, ("people", "asked"), "out"),
    ],
)
def test_a_folder_that_another_run_writes_is_left_alone(
    script: str, arguments: tuple[str, ...], names: tuple[str, ...], lock: str, kit: Kit, folder: Path
) -> None:
    holding(*names)(kit, folder)
    (folder / lock).mkdir()
    before = snapshot(folder.parent)
    with another_run(folder / lock):
        ended = kit.scripts.run(Call(script, [*arguments], str(folder)))
        after = snapshot(folder.parent)
    case = Case("", script, arguments, new=("cache", f"{lock}/.lock"), says="is in use by another run")
    assert not faults(case, ended, before, after), ended
