"""Hostile input to the scripts, end to end: one line and an exit status, no traceback, no hang, and no file changed.

What the readers do with damaged files is tested with each of them; ``tests.damage`` makes the files.
"""

import importlib
import json
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from data.labels import CELEBAMASK, HELEN
from models.deeplab import DeepLab, DeepLabConfig
from models.loading import SHIPPED_WEIGHTS
from retrieval.align import Cut
from tests import damage, fixtures
from tests.damage import BAD_PICTURES, BAD_VIDEOS, SPECIAL, little_room
from tests.fixtures import another_run, save_parser
from tests.test_evaluate import save_models
from tests.test_report import write_run
from tests.test_retrieval import write_people
from utils.runtime import printable, run_main

SECONDS = 120  # after which a call hangs
RESULTS = ("cache", "run", "out", "edges", "new.pt")  # what a call may leave behind
CPU = "--device cpu --amp off"
MACHINE = f"{CPU} --workers 0 --cache cache --batch-size 2"
TRAIN = f"{MACHINE} --epochs 1 --max-images 2 --run-dir run"
FACES, LAPA = "--dataset celebamask --data faces", "--dataset lapa --data lapa"
CHAIN = f"--dataset helen --data helen {MACHINE} --out run"
LIST, PEOPLE = "--dataset list --data list", f"--data people {CPU} --workers 0 --batch-size 2 --epochs 1 --run-dir run"
SEARCH = f"people asked --out out {CPU} --workers 0"
RELABEL = f"tools.relabel {FACES} --cache cache --device cpu --checkpoint w19.pt"
OF_PHOTOS = ("--probabilities", "--coloured colours", "--grey", "--owners", "--opacity 0.3")
LABEL_MAPS = f"--predictions maps --truth maps {CPU}"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good files, but for bad.pt, the photo of helen/ to test, and the blank label maps of blank/."""
    root = tmp_path_factory.mktemp("kit") / "case"
    root.mkdir()
    (root.parent / "outside.txt").write_text("not yours\n")
    faces = fixtures.draw_faces(train=2, val=1, test=1)
    fixtures.write_challenge(root / "faces", faces)
    fixtures.write_lapa(root / "lapa", faces)
    fixtures.write_list(root / "list", faces)
    fixtures.write_helen_merged(root / "helen", faces)
    (root / "helen" / "images" / "3.jpg").write_bytes(b"no picture")
    for _, _, labels in faces["train"]:
        labels[:] = 0
    fixtures.write_challenge(root / "blank", faces)
    save_models(root)
    for labels in (CELEBAMASK, HELEN):
        save_parser(root / f"w{len(labels)}.pt", DeepLab(DeepLabConfig(32), labels), "deeplab")
    write_people(root / "people", {"ann": 3, "bob": 3})
    write_people(root / "asked", {"ann": 1, "bob": 1})
    write_people(root / "faceless", {"a": 1, "b": 1}, 48)
    write_people(root / "empty", {"a": 1, "b": 1}, 48)
    (root / "empty" / "c").mkdir()
    for name in ("named/faces.jsonl", "coded/\udce9"):  # a file of ours, and no UTF-8
        write_people(root / Path(name).parent, {Path(name).name: 1})
    (root / "maps").mkdir()
    (root / "folder.pt2").mkdir()
    (root / "link").symlink_to("faces/train/train_mask")
    for name in "ab":
        fixtures.save_palette(root / "maps" / f"{name}.png", np.minimum(fixtures.draw_face(64)[1], 8))
    write_run(root / "results" / "mine", 0, 0.9)
    (root / "results" / "experiments").mkdir()
    (root / "end2end.pt").rename(root / "w.pt")
    (root / "good.jpg").write_bytes(damage.jpeg())
    (root / "clip.mp4").touch()
    (root / "bad.pt").write_bytes(b"These are no weights.\n")
    return root


@pytest.fixture
def here(kit: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The kit, as the working folder. Whatever a test does, its files are as before, and no call takes too long."""

    def contents() -> dict[Path, object]:
        own = [(kit.name, name) for name in RESULTS]
        paths = [path for path in kit.parent.rglob("*") if path.relative_to(kit.parent).parts[:2] not in own]
        return {path: path.stat().st_mtime_ns if path.is_file() else "no file" for path in paths}

    monkeypatch.chdir(kit)
    before = contents()
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("a call hangs"))
    signal.alarm(SECONDS)
    yield kit
    signal.alarm(0)
    for name in RESULTS:
        remove(kit / name)
    assert contents() == before


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def call(line: str) -> int:
    """Runs a script as from the command line; returns its exit status."""
    script, *arguments = shlex.split(line)
    return run_main(lambda: importlib.import_module(script).main(arguments))


def refused(line: str, capture: pytest.CaptureFixture) -> str:
    """The one line on stderr with which a call ends."""
    capture.readouterr()
    assert call(line) == 2
    message = capture.readouterr().err
    assert message.startswith("error: ")
    assert message[:-1].isprintable()  # no second line, no escape sequences
    assert len(message) < 600
    return message


STAGES = ("train_stage1", "train_cropper", "train_stage2", "train_end2end")
BOTH = "start from --init-from-cropper, with --init-from-stage2 or with random part networks, or from --init-from"
ALL_AT_ONCE = ("--lr-localizer -2", "--epochs 0", "--workers 999", "--init-from is needed")
TRAININGS: tuple[tuple[str, str, str], ...] = (  # script, options, message
    *(("train_stage1", f"--max-images={value}", f"--max-images {value}: must be ") for value in (0, -3)),
    *(("train_stage1", f"--workers={value}", f"--workers {value}: must be ") for value in (-1, 257)),
    *(("train_stage1", f"--batch-size={value}", f"--batch-size {value}: must be ") for value in (0, -2, 65537)),
    *(("train_stage1", f"--seed={value}", f"--seed {value}: must be ") for value in (-1, 2**63)),
    *(("train_stage1", f"--epochs={value}", f"--epochs {value}: must be ") for value in (0, -1)),
    ("train_stage1", f"--epochs {'9' * 5000}", "--epochs"),
    *(("train_stage1", f"--lr={value}", f"--lr {value}: must be ") for value in (-0.1, "100.0", "inf", "nan")),
    *(("train_stage1", f"--coarse-size={value}", f"--coarse-size {value}") for value in (0, -5, 15, 1025)),
    *(("train_stage2", f"--crop-size={value}", f"--crop-size {value}") for value in (0, -5, 7, 1025)),
    *(("train_stage1", f"--face-size={value}", f"--face-size {value}") for value in (15, 2049)),
    *(("train_stage1", f"--{words}", f"--{words.split()[0]}") for words in ("epochs many", "recipe secret", "speed 9")),
    ("train_stage1", "stray", "stray"),
    ("train_stage1", "--lr 0", "every learning rate is 0"),
    ("train_stage1", "--dataset helen --data helen --partition paper", "--partition paper: --dataset"),
    ("train_stage1", "--dataset synthetic --data .", "--dataset is missing (synthetic faces need no folder)"),
    ("train_stage1", "--data blank", "the 2 faces to train on have no label but background in label set nine"),
    *(("train_stage1", f"--device={name}", f"device {name}") for name in ("gpu", "cuda:x", "", "meta", "cpu:99")),
    *((script, "--init-from none.pt", "none.pt: no such checkpoint file") for script in STAGES),
    *(("train_end2end", words, BOTH) for words in ("", "--init-from-stage2 a", "--init-from a --init-from-cropper b")),
    *(("train_cropper", "--lr-localizer=-2 --epochs 0 --workers 999", problem) for problem in ALL_AT_ONCE),
    *(("train_deeplab", f"{words} --epochs 3", words) for words in ("--self-distill 3", "--self-distill 0")),
    ("train_deeplab", "--self-distill 1 --epochs 3 --threshold 1.0", "threshold 1.0"),
    ("train_deeplab", "--self-distill 1 --epochs 3 --labels nine", "leave out --labels"),
    *(("train_deeplab", words, "the range above 0") for words in ("--mirror-probability 2", "--scale-range 1 0.5")),
    ("train_deeplab", "--recipe seed --least-share 0.01", "seed has no class weights"),
    ("train_whole", "--encoder-weights none --arch fnp", "arch fnp: choose one of unet"),
    ("train_whole", "--encoder-weights none --encoder tu-nothing", "encoder tu-nothing: "),
    ("train_whole", "--encoder-weights none --input-size 65", "multiple of 32"),
    ("train_whole", "--encoder-weights none --balance 2", "--balance 2.0: must be between"),
    ("train_whole", "--encoder-weights gone.pth", "gone.pth"),
    *(("train_stage2", f"--{name}=-1", f"--{name} -1.0: must be ") for name in ("weight-decay", "lr-brows", "lr")),
    ("train_stage2", "--lr-brows 0 --lr-eyes 0 --lr-nose 0 --lr-mouth 0", "every learning rate is 0"),
    *(("train_stage2", f"--part-channels {words}", "--part-channels") for words in ("8 16 24", "8 16 24 0")),
)
LINES: tuple[tuple[str, str], ...] = (
    # no checkpoint
    (f"predict good.jpg --checkpoint bad.pt --out out {CPU}", "bad.pt"),
    (f"train_eagrnet {LAPA} --input-size 65 --imagenet bad.pt {TRAIN}", "bad.pt"),
    # a good checkpoint of another kind
    (f"train_deeplab {LAPA} --input-size 32 --init-from w.pt {TRAIN}", "w.pt"),
    (f"retrieval.train {PEOPLE} --pretrained w.pt", "--init-from"),
    (f"retrieval.search {SEARCH} --checkpoint w.pt", "not an identity embedding"),
    ("predict good.jpg --labels helen --checkpoint w.pt --out out", "labels nine; give a checkpoint of helen"),
    ("evaluate --crops none --checkpoint stage2.pt", "no coarse weights; give a checkpoint that holds coarse"),
    ("evaluate --crops truth --checkpoint w19.pt", "crops truth: w19.pt holds deeplab, which has no crops"),
    ("predict good.jpg --checkpoint w19.pt --windows --faces none --out out", "windows: deeplab has none to draw"),
    ("evaluate --checkpoint w19.pt w11.pt", "deeplab labels celebamask, deeplab helen: give checkpoints of one"),
    # options that are missing, out of range, or contradict each other
    (f"predict --out out {CPU}", "photos or videos (INPUT)"),
    ("predict good.jpg --windows --no-overlay", "--no-overlay"),
    *((f"predict --checkpoint {word} good.jpg", word) for word in ("maps", "good.jpg", "*.pt")),
    *((f"predict clip.mp4 {words}", "is for photos, and clip.mp4 is a video") for words in OF_PHOTOS),
    ("predict clip.mp4 --faces none", "clip.mp4 is a video"),
    ("predict --camera 0 --faces none", "always detected"),
    ("predict --camera 0 good.jpg", "either photos"),
    ("predict --camera none.mp4", "no such camera"),
    ("predict maps/a.png --out maps --overwrite", "is an input, which its results would replace: choose another"),
    ("predict maps/a.png --out out --coloured maps", "is an input, which its results would replace"),
    ("predict maps/a.png --out out --coloured out", "choose one other than --out"),
    ("predict maps/a.png --out out --coloured good.jpg", "is a file; give a folder"),
    ("predict good.jpg --opacity 1.5", "between 0 and 1"),
    ("predict good.jpg --owners --faces none", "leave out --faces none"),
    ("evaluate --predictions maps --truth maps --mirror --face-size 64", "so --mirror, --face-size has no effect"),
    ("evaluate --predictions maps --truth maps --ids nine --labels celebamask", "has no separate"),
    ("evaluate --ids helen", "leave them out"),
    ("evaluate --partition paper", "--partition paper: --dataset"),
    ("evaluate --dataset helen", "--data is needed"),
    (f"evaluate --worst 2 --checkpoint w.pt {FACES}", "--worst"),
    (f"evaluate {LIST} --checkpoint w.pt", "needs --labels"),
    *((f"{script} {FACES} {TRAIN} {options}", message) for script, options, message in TRAININGS),
    (f"train_stage1 --labels lapa {LAPA} {TRAIN}", "--labels lapa"),
    (f"train_deeplab --dataset helen --data helen --labels celebamask {TRAIN}", "--labels celebamask"),
    (f"train_deeplab {LAPA} {TRAIN} --input-size 31", "--input-size"),
    (f"train_deeplab {LAPA} {TRAIN} --batch-size 1", "batch size 1"),
    ("train_eagrnet --run-dir run --init-from a.pt --imagenet b.pth", "give one of them"),
    (f"train_eagrnet {LAPA} {TRAIN} --input-size 63", "--input-size"),
    ("tools.check --dataset synthetic --max-images 1 --out sheet.txt", "--out"),
    ("tools.check --dataset synthetic --max-images 1 --out /proc/none/a.png", "--out /proc/none cannot be made"),
    ("tools.export --checkpoint w.pt", "--program"),
    ("tools.export --checkpoint w.pt --program w.pt", "w.pt"),
    ("tools.export --program folder.pt2 --overwrite", "folder.pt2 is a folder"),
    (f"tools.export --program {'a' * 256}/faces.pt2", "there is no folder a"),
    ("tools.release --checkpoint w.pt --out w19.pt", "w19.pt already exists"),
    ("tools.release --average --checkpoint w.pt --out new.pt", "two checkpoints or more"),
    ("tools.release --average --checkpoint w.pt stage1.pt --out new.pt", "stage1.pt"),
    (f"tools.release --average --checkpoint w.pt {SHIPPED_WEIGHTS} --out new.pt", "holds another parser"),
    ("tools.release --checkpoint w.pt w19.pt --out new.pt", "are of two parsers"),
    ("tools.release --checkpoint w.pt --out . --overwrite", "--out . is a folder"),
    (f"tools.relabel {FACES} --checkpoint w.pt --out out", "labels in nine, the data set in celebamask"),
    *((f"{RELABEL} --out out --threshold={value}", "threshold") for value in (-0.1, 1, "nan")),
    (f"{RELABEL} --out out --rare 2", "rare"),
    *((f"{RELABEL} --out {place}", "which is never written to") for place in ("faces", "faces/train/new", "link")),
    (f"{RELABEL} --out maps", "not empty"),
    (f"tools.edges --split train --out lapa/train/labels {LAPA}", "has other content"),
    (f"retrieval.train {PEOPLE} --keep 0", "--keep 0.0"),
    (f"retrieval.train {PEOPLE} --pretrained w.pt --init-from w.pt", "give one"),
    (f"retrieval.search {SEARCH} --checkpoint raw --predictions ../a.txt", "--predictions"),
    # the chain, before its first stage trains
    (f"reproduce {CHAIN} --crop-size 7", "--crop-size 7: coarse size must lie"),
    (f"reproduce {CHAIN} --coarse-size 2000", "--coarse-size 2000: coarse size must lie"),
    (f"reproduce {CHAIN} --batch-size 50", "batch size 50 is larger than the 10 faces of an epoch"),
    (f"reproduce {CHAIN} --partition paper", "--partition paper: --dataset helen has only one split"),
    (f"reproduce {CHAIN}", "images/3.jpg"),
    # experiments
    (f"experiments.ablation {FACES} {MACHINE} --runs out --out out --epochs 0", "--epochs 0: must be at least 1"),
    (f"experiments.hidden_parts {FACES} {CPU} --checkpoint w19.pt --out out", "w19.pt holds deeplab, but"),
    (f"experiments.coarse_size {FACES} {MACHINE} --runs out --out out --sizes 8", "--coarse-size 8: coarse size must"),
    (f"experiments.class_imbalance {FACES} --out /proc/none", "--out /proc/none cannot be made"),
    (f"experiments.class_imbalance {FACES} --out out --figure /proc/none/x.pdf", "--figure /proc/none cannot be made"),
    ("experiments.report --results maps", "maps holds neither runs nor experiments"),
    ("experiments.report --results nowhere", "nowhere is not a folder"),
    # people
    ("retrieval.align people people/ann/out", "whose folders"),
    ("retrieval.align people .", "holds other files"),
    ("retrieval.align people/ann out", "holds no people"),
    ("retrieval.align named out", "out/faces.jsonl could not be read or written: File exists"),
    ("retrieval.align coded out", "rename them"),
    ("retrieval.align faceless out --workers 1", "no face in any"),
    ("retrieval.align empty out --workers 1", "without photos: 1 (c)"),
    (f"retrieval.train {PEOPLE} --data asked", "no person has two photos"),
    (f"retrieval.train {PEOPLE} --run-dir people/run", "--run-dir people/run"),
    (f"retrieval.search people asked --out people/out --checkpoint raw {CPU}", "--out people/out"),
)


@pytest.mark.parametrize(("line", "message"), LINES, ids=[f"{line[:60]} {k}" for k, (line, _) in enumerate(LINES)])
def test_a_wrong_call_is_refused_in_one_line(line, message, here, capfd):
    assert message in refused(line, capfd)
    assert not (here / "run").exists()
    assert not (here / "new.pt").exists()


ODD_NAMES = (
    *("n" * 236, "n" * 246, "n" * 251, "a\nfailed: b", "a\x1b[31mred", os.fsdecode(b"caf\xe9")),
    *("é漢字🙂", "  a  b  ", "[a-z]*", "%s%d{0}", ".."),
)


def test_predict_names_every_bad_file_on_a_line_of_its_own_and_labels_the_others(here, capfd):
    bad, good = here / "out" / "bad", here / "out" / "good"
    bad.mkdir(parents=True)
    good.mkdir()
    makers: dict[str, Callable[[Path], object]] = {
        **{
            f"{k}.jpg": lambda path, make=make: path.write_bytes(make()) for k, make in enumerate(BAD_PICTURES.values())
        },
        **{
            f"clip{k}.mp4": lambda path, make=make: path.write_bytes(make())
            for k, make in enumerate(BAD_VIDEOS.values())
        },
        **{f"special{k}.jpg": make for k, make in enumerate(SPECIAL.values())},
        **{f"special_clip{k}.mp4": make for k, make in enumerate(list(SPECIAL.values())[:4])},
        **{f"{name[1:]}x.jpg": lambda path: path.write_bytes(b"no picture") for name in ODD_NAMES},
    }
    for name, make in makers.items():
        make(bad / name)
        if name.startswith("special"):
            (bad / "pipe").unlink(missing_ok=True)  # where a link to one leads: the next one makes its own
    for name in (*ODD_NAMES, "last"):
        (good / f"{name}.jpg").write_bytes(damage.jpeg())
    os.mkfifo(bad / "pipe")
    arguments = [str(path) for path in (*(bad / name for name in makers), good)]
    arguments += ["none.jpg", "*.xyz", "good.jpg/x.jpg"]
    line = shlex.join(["predict", *arguments, "--checkpoint", "w.pt", "--out", "out/maps", *CPU.split()])
    assert call(line) == 1
    out, errors = (text.splitlines() for text in capfd.readouterr())
    errors = [row for row in errors if not row.startswith("[")]  # FFmpeg's own words, where the file was loaded early
    assert all(row.startswith("failed: ") and len(row) < 900 for row in errors), errors
    assert all(row.isprintable() for row in (*errors, *out)), errors
    named = [sum(printable(str(bad / name)) in row for row in errors) for name in makers]
    assert 0 not in named, errors
    assert len(errors) <= len(makers) + 3 + 3  # good photos whose results have too long a name
    maps = {path.name for path in (here / "out" / "maps").iterdir()}
    assert {"last.png", "last_overlay.jpg", "é漢字🙂.png", "[a-z]*.png"} <= maps
    assert not [name for name in maps if name.endswith(".part")]


STAGE2, IDENTITY_TRAINING = f"train_stage2 --crop-size 9 {FACES} {TRAIN}", f"retrieval.train {PEOPLE}"
ALIGN, RAW = "retrieval.align people out --workers 1", f"retrieval.search {SEARCH} --checkpoint raw"
EDGES = f"tools.edges --split train --out edges {LAPA}"
IN_PLACE: tuple[tuple[str, str], ...] = (
    (STAGE2, "run"),
    (STAGE2, "cache"),
    (IDENTITY_TRAINING, "run"),
    (ALIGN, "out"),
    (RAW, "out"),
    (EDGES, "edges"),
    (f"predict good.jpg --checkpoint w.pt --out out {CPU}", "out"),
    (f"evaluate {LABEL_MAPS} --out out", "out"),
    (f"reproduce {FACES} {MACHINE} --out out", "out"),
)


@pytest.mark.parametrize(("line", "name"), IN_PLACE, ids=[f"{line.split()[0]} {name}" for line, name in IN_PLACE])
def test_a_pipe_in_place_of_a_folder_is_left_alone_and_so_is_the_folder_of_another_run(line, name, here, capfd):
    for kind in ("pipe", "empty device", "link to itself"):
        SPECIAL[kind](here / name)
        about = os.lstat(here / name)
        assert name in refused(line, capfd)
        assert os.path.samestat(about, os.lstat(here / name))
        for result in RESULTS:
            remove(here / result)
    if line.startswith(("train_", "retrieval.", "reproduce")) and name != "cache":
        with another_run(here / name):
            assert "is in use by another run" in refused(line, capfd)
            assert [path.name for path in (here / name).iterdir()] == [".lock"]


@pytest.mark.parametrize(("name", "text"), [("faces.jsonl", '{"photo": 1}\n'), ("ann", "")])
def test_a_file_in_the_way_of_aligned_faces_is_one_line(name, text, here, capfd):
    (here / "out").mkdir()
    (here / "out" / "align.json").write_text(json.dumps({"source": os.path.realpath("people"), **asdict(Cut())}))
    (here / "out" / name).write_text(text)
    assert f"out/{name}" in refused(ALIGN, capfd)


RELEASE = "tools.release --checkpoint w.pt --out new.pt --overwrite"
SCORES = f"evaluate {LABEL_MAPS} --out out --worst 1 --overwrite"
CHECK = "tools.check --dataset synthetic --split test --max-images 1 --out out.png"
REPORT = "experiments.report --results results"
PREDICT = f"predict good.jpg --checkpoint w.pt --faces none --out out --overwrite {CPU}"
OLDER = {SCORES: "out/scores.csv", RELEASE: "new.pt", PREDICT: "out/good.png"}


@pytest.mark.parametrize(
    "line",
    [SCORES, PREDICT, STAGE2, IDENTITY_TRAINING, ALIGN, RAW, EDGES, RELEASE, CHECK, REPORT],
    ids=lambda line: line.split()[0],
)
def test_a_full_disk_is_one_line_and_older_files_stay(line, here, capsys):
    if older := OLDER.get(line):
        (here / older).parent.mkdir(exist_ok=True)
        (here / older).write_bytes(b"mine")
    with little_room(0):
        assert call(line) == 2
    errors = [row for row in capsys.readouterr().err.splitlines() if not row.startswith("failed: ")]
    assert [row[:7] for row in errors] == ["error: "]
    assert not older or (here / older).read_bytes() == b"mine"
    assert not list(here.rglob(".*.part"))
