"""The experiments: their numbers on made-up windows and laws, and each script on tiny faces from end to end."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import reproduce
import train_stage2
from data.labels import HELEN, LabelSet
from data.source import FaceData, open_source
from experiments import ablation, class_imbalance, coarse_size, common, hidden_parts, kinds, robustness
from geometry.theta import window_theta
from models.stn_icnn.model import STNiCNN
from tests.damage import refuses

SIZES_B2 = torch.tensor([[101, 201]])


def windows(centres, side):
    """theta_BP23 of six windows in a photo of 201 x 101 pixels."""
    return window_theta(torch.tensor([centres]), torch.full((1, 6, 1), side), SIZES_B2)


def test_a_window_misses_when_it_is_far_off_or_cuts_the_part():
    truth = windows([(50.0, 50.0)] * 6, 41)
    # inside; inside; cut at the left by a pixel; off by almost a quarter; a small part, by more than that; elsewhere
    found = windows([(50, 50), (53, 54), (56, 50), (50, 60), (50, 61), (150, 50)], 41)
    boxes = torch.tensor([[35.0, 40, 65, 60]] * 4 + [[45, 45, 55, 55]] * 2)[None]
    for part, (missed, pixels) in enumerate([(0, 0), (0, 5), (1, 6), (0, 10), (1, 11), (1, 100)]):
        misses = common.Misses()
        misses.add(found, truth, boxes, SIZES_B2, torch.arange(6)[None] == part)
        expected = {"miss_rate": missed, "pixels_mean": pixels}
        assert misses.summary() == pytest.approx(expected, abs=1e-4)
    misses = common.Misses()
    misses.add(found, truth, boxes, SIZES_B2, torch.zeros(1, 6, dtype=torch.bool))
    assert misses.summary() is None
    larger = torch.tensor([20.0, 40, 80, 60]).expand(1, 6, 4)  # than its true window, which cuts it too
    misses.add(windows([(52.0, 50.0)] * 6, 41), truth, larger, SIZES_B2, torch.ones(1, 6, dtype=torch.bool))
    assert misses.summary()["miss_rate"] == 0


def test_all_changes_together_make_the_best_recipe_on_the_short_schedule_and_one_changes_nothing_else():
    short, best = train_stage2.RECIPES.paper_short, train_stage2.RECIPES.best
    made = ablation.adopt(short, best, ablation.CHANGES["all"][1])
    rates = replace(best.optimisation, epochs=short.optimisation.epochs, lr=short.optimisation.lr)
    model = {**short.model, **best.model}
    assert made == replace(best, optimisation=rates, batch_size=short.batch_size, model=model)
    changes = {change: ablation.adopt(short, best, fields) for change, (_, fields) in ablation.CHANGES.items()}
    assert [change for change, recipe in changes.items() if recipe == short] == [ablation.BASE]
    mirror = ablation.CHANGES["mirror"][1]
    alone = ablation.adopt(short, best, mirror)
    assert alone.augmentation.mirror == best.augmentation.mirror > 0
    assert ablation.adopt(alone, short, mirror) == short


@pytest.fixture
def run(tiny_options, tmp_path):
    """Runs an experiment; what it wrote."""

    def run(script, *words):
        assert script.main([*tiny_options, "--out", str(tmp_path / "out"), *map(str, words)]) == 0
        return json.loads((tmp_path / "out" / f"{script.NAME}.json").read_text())

    return run


@pytest.fixture
def trained(monkeypatch, weights) -> SimpleNamespace:
    """No training takes any time here; each raises the strict score by 0.01. stages: that an experiment trains, and
    their plans. scored: folders of the checkpoints that it scores, and their crops."""
    trained = SimpleNamespace(stages=[], scored=[])

    def train_stage(stage, plan):
        trained.stages.append((stage, plan))
        plan.folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(weights, plan.folder / "best.pt"))

    def score(request, *_):
        trained.scored.append((*(path.parent.name for path in request.checkpoints), request.crops))
        return {"paper": {"overall": 0.5}, "strict": {"mean": 0.4 + 0.01 * len(trained.stages)}}

    monkeypatch.setattr(reproduce, "train_stage", train_stage)
    monkeypatch.setattr(reproduce, "score", score)
    return trained


def test_hidden_parts_are_covered_in_photo_and_small_image_and_nowhere_else(val_faces):
    batch = val_faces.first(2)
    boxes_BP4 = common.part_boxes(batch.labels_BHW)
    hidden_BP = np.zeros((2, 6), bool)
    hidden_BP[1, 4] = True
    covered = hidden_parts.hide(batch, boxes_BP4, hidden_BP)
    assert torch.equal(covered.photos_BHW3[0], batch.photos_BHW3[0])
    assert torch.equal(covered.images_256_BSS3[0], batch.images_256_BSS3[0])
    changed_HW = (covered.photos_BHW3[1] != batch.photos_BHW3[1]).any(-1)
    left, top, right, bottom = boxes_BP4[1, 4].tolist()
    grow_x, grow_y = 0.15 * (right - left + 1), 0.15 * (bottom - top + 1)
    ys, xs = torch.nonzero(changed_HW, as_tuple=True)
    assert left - grow_x - 1 <= xs.min() <= left
    assert right <= xs.max() <= right + grow_x + 1
    assert top - grow_y - 1 <= ys.min() <= top
    assert bottom <= ys.max() <= bottom + grow_y + 1
    patch = covered.photos_BHW3[1][batch.labels_BHW[1] == 5]
    assert (patch == patch[0]).all()
    assert not torch.equal(covered.images_256_BSS3[1], batch.images_256_BSS3[1])


def test_parts_are_hidden_one_after_the_other_in_an_order_of_the_seed():
    present = np.array([True, True, False, True, True, True])
    rank = hidden_parts.hiding_rank(present, 3, 7)
    assert sorted(rank.tolist()) == [0, 1, 2, 3, 4, 6]
    assert rank[2] == 6
    assert (rank == hidden_parts.hiding_rank(present, 3, 7)).all()
    assert len({tuple(hidden_parts.hiding_rank(present, 3, index)) for index in range(20)}) > 10


def test_hidden_parts_gives_a_row_for_each_number_and_cropper(run, weights, tmp_path):
    words = ["--checkpoint", weights, "--max-images", "2", "--pictures", tmp_path]
    rows = run(hidden_parts, *words)["rows"]
    assert [(row["hidden"], row["cropper"]) for row in rows] == [(k, c) for k in range(7) for c in common.CROPPERS]
    assert all(0 <= row["windows"]["miss_rate"] <= 1 and row["f1"]["overall"] is not None for row in rows)
    with Image.open(tmp_path / "hidden_parts.jpg") as picture:
        assert picture.size == (4 * 160, 2 * 160)


def test_coarse_sizes_are_compared_by_mask_and_windows(run, trained, tmp_path):
    small = ["--sizes", 64, 128, "--epochs", 1, 2, "--batch-size", 2, "--max-images", 2, "--crop-size", 33]
    result = run(coarse_size, *small, "--runs", tmp_path)
    first, second = result["rows"]
    assert (first["size"], second["size"]) == (64, 128)
    assert all(first["windows"][name]["pixels_mean"] > 0 for name in common.CROPPERS)
    assert first["f1"] != second["f1"]
    assert [(stage, plan.folder.parent.name) for stage, plan in trained.stages] == [
        (stage, size) for size in ("64", "128") for stage in ("stage1", "cropper")
    ]
    assert trained.scored == 2 * [("stage1", "none")]
    assert [plan.recipe.optimisation.epochs for _, plan in trained.stages] == [1, 2, 1, 2]
    assert [plan.config(STNiCNN).coarse_size for stage, plan in trained.stages if stage == "stage1"] == [64, 128]
    assert "STN off by, pixels" in coarse_size.table(result)


def test_kinds_are_read_off_the_true_parts():
    names = ("background", "skin", "glasses")
    turn_N = np.array([0.0, 0.5, np.nan])
    present_NP = np.array([[True] * 6, [True] * 6, [True, True, False, True, True, True]])
    labels_NK = np.array([[True, True, False]] * 3)
    traits = kinds.Traits(labels_NK, present_NP, turn_N, np.array([0.2, 0.5, 0.8]))
    found = {kind: chosen.tolist() for kind, chosen in kinds.kinds(traits, names).items()}
    assert found["all"] == [True, True, True]
    assert found["glasses"] == [False, False, False]
    assert found["an eye hidden"] == [False, False, True]
    assert found["head turned"] == [False, True, False]
    assert found["skin in the darkest fifth"] == [True, False, False]
    assert found["skin in the brightest fifth"] == [False, False, True]


def test_turned_heads_are_measured_by_eyes_and_nose(val_faces, monkeypatch):
    faces = val_faces
    present, centres, extents = faces.parts()
    for k, (left, right, nose) in enumerate((((20, 30), (40, 30), (30, 40)), ((20, 20), (40, 40), (40, 40)))):
        centres[k, 2:5] = left, right, nose
        present[k] = True
    present[2, 3] = False
    monkeypatch.setattr(faces, "parts", lambda: (present, centres, extents))
    traits = kinds.measure(faces)
    np.testing.assert_allclose(traits.turn_N, [0, 0.5, np.nan], atol=1e-6)
    skin = faces.photo(0)[faces.ids(0) == 1].astype(float)
    assert traits.brightness_N[0] == pytest.approx((skin @ [0.299, 0.587, 0.114]).mean() / 255)
    skinless = tuple(name.replace("skin", "rest") for name in HELEN.names)
    monkeypatch.setattr(faces, "data_labels", replace(HELEN, names=skinless))
    assert np.isnan(kinds.measure(faces).brightness_N).all()
    monkeypatch.setattr(faces, "labels", LabelSet("two", ("background", "skin")))
    with refuses("two lacks some of the six parts"):
        kinds.measure(faces)


def test_the_ablation_trains_what_a_change_touches(run, trained, tmp_path):
    small = ["--epochs", 3, "--batch-size", 2, "--max-images", 2, "--crop-size", 33, "--runs", tmp_path]
    result = run(ablation, *small, "--rows", "jitter", "all")
    assert [row["change"] for row in result["rows"]] == ["paper-short", "jitter", "all"]
    recipes = [plan.recipe for _, plan in trained.stages]
    assert [recipe.jitter for recipe in recipes] == [0, *[train_stage2.RECIPES.best.jitter] * 2]
    assert [recipe.dice > 0 for recipe in recipes] == [False, False, True]
    assert {recipe.optimisation.epochs for recipe in recipes} == {3}
    assert trained.scored == 3 * [("stage2", "truth")]
    assert "| jittered windows | 0.5000 | 0.4200 | +0.0100 |" in ablation.table(result)


def test_written_commands_name_no_folder_of_this_machine():
    words = "--data /faces --cache=/c/d --checkpoint /a/b.pt c/d.pt --out=/results/mine --seed 3 /a/x.jpg"
    shown = "--data DIR/faces --cache=DIR/d --checkpoint DIR/b.pt c/d.pt --out=DIR/mine --seed 3 DIR/x.jpg"
    assert " ".join(common.portable(words.split())) == shown


def test_robustness_changes_photo_and_labels_alike():
    labels = np.zeros((100, 120), np.uint8)
    labels[30:40, 80:90] = 5
    face, shapes = (np.repeat(labels[:, :, None] * 50, 3, 2), labels), {}
    for name in robustness.CONDITIONS:
        new_photo, new_labels = robustness.changed(face, np.random.default_rng(0), name)
        shapes[name] = new_labels.shape
        assert new_photo.shape == (*new_labels.shape, 3), name
        if name.startswith(("rotated by", "shifted", "scaled", "3:4", "4:3")):
            assert ((new_photo[..., 0] > 125) == (new_labels == 5)).mean() > 0.99, name
            assert 20 < (new_labels == 5).sum() < 250, name
    assert (shapes["3:4"], shapes["4:3"]) == ((100, 90), (76, 120))


@pytest.mark.parametrize("script", [kinds, robustness])
def test_parsers_without_windows_and_with_other_labels_are_scored_too(script, run, other_parser, monkeypatch):
    for name in [*robustness.CONDITIONS][2:]:
        monkeypatch.delitem(robustness.CONDITIONS, name)
    rows = run(script, "--checkpoint", str(other_parser))["rows"]
    assert all(0 <= score <= 1 for row in rows for score in row["f1"].values())
    if script is kinds:  # HELEN does not know glasses
        counts = {row["kind"]: row["faces"] for row in rows}
        assert (counts["all"], counts["skin in the darkest fifth"], "glasses" in counts) == (3, 1, False)
    else:
        assert [row["condition"] for row in rows] == ["unchanged", "rotated by 20°"]
        assert rows[0]["f1"] != rows[1]["f1"]
        assert rows[0]["found"] != rows[1]["found"]


def test_class_imbalance_counts_every_pixel_of_the_masks(run, helen_root, tmp_path):
    result = run(class_imbalance, "--figure", tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    source = open_source(FaceData("helen", helen_root), "train")
    maps = [source.read(sample)[1] for sample in source.samples]
    whole = np.concatenate([ids.ravel() for ids in maps])
    assert (result["faces"], result["split"]) == (len(maps), "train")
    shares = [row["share"] for row in result["rows"]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert len(shares) == len(HELEN)
    for row in result["rows"]:
        label = HELEN.names.index(row["label"])
        assert row["pixels"] == (whole == label).sum()
        assert row["faces"] == np.mean([(ids == label).any() for ids in maps])
