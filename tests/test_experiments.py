"""The experiments: their numbers on made-up windows and laws, and each script on tiny faces from end to end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import reproduce
import train_cropper
import train_end2end
import train_stage1
import train_stage2
from data.labels import HELEN
from data.source import FaceData, open_source
from experiments import (
    ablation,
    class_imbalance,
    coarse_size,
    common,
    crop_parity,
    few_images,
    fused,
    hidden_parts,
    kinds,
    robustness,
    true_windows,
)
from geometry.theta import window_theta
from models.stn_icnn.baseline import part_boxes
from models.stn_icnn.model import STNiCNNConfig
from training.task import Plan
from utils.errors import InputError

SIZES_B2 = torch.tensor([[101, 201]])


def windows(centres, side):
    """theta_BP23 of six windows in a photo of 201 x 101 pixels."""
    return window_theta(torch.tensor([centres]), torch.full((1, 6, 1), side), SIZES_B2)


def made_up() -> common.Misses:
    """True windows of 41 pixels around (50, 50), parts of 31 x 21 pixels; each of the six predicted otherwise."""
    truth = windows([(50.0, 50.0)] * 6, 41)
    found = windows([(50, 50), (53, 54), (56, 50), (50, 58), (50, 62), (150, 50)], 41)
    boxes = torch.tensor([35.0, 40, 65, 60]).expand(1, 6, 4)
    return common.misses(found, truth, boxes, SIZES_B2)


def test_a_window_misses_when_it_is_far_off_or_cuts_the_part():
    found = made_up()
    np.testing.assert_allclose(found.pixels_NP[0], [0, 5, 6, 8, 12, 100], atol=1e-3)
    np.testing.assert_allclose(found.share_NP[0], np.array([0, 5, 6, 8, 12, 100]) / 41, atol=1e-4)
    # inside; inside; cut at the left by a pixel; inside above and below; cut and beyond a quarter; elsewhere
    assert found.missed_NP[0].tolist() == [False, False, True, False, True, True]
    some = np.array([[True, True, False, False, True, False]])
    summary = common.summary(found, some)
    assert summary == {"windows": 3, "miss_rate": 0.3333, "pixels_mean": 5.67, "pixels_median": 5.0, **summary}
    assert common.summary(found, some & False) is None
    truth, near = windows([(50.0, 50.0)] * 6, 41), windows([(52.0, 50.0)] * 6, 41)
    larger = torch.tensor([20.0, 40, 80, 60]).expand(1, 6, 4)  # than its true window, which cuts it too
    assert not common.misses(near, truth, larger, SIZES_B2).missed_NP.any()


def test_a_power_law_is_found_again_and_fewer_faces_are_seen_as_often_in_all():
    counts = [500, 1000, 2000, 3000]
    assert few_images.power_law(counts, [0.8 * n**-0.3 for n in counts]) == pytest.approx((0.8, 0.3))
    found = {count: few_images.schedule(4, 3000, count, 32, 1) for count in (3000, 200, 50, 8)}
    assert found == {3000: (4, 32), 200: (62, 32), 50: (372, 32), 8: (372, 8)}


def test_all_changes_together_make_the_best_recipe_on_the_short_schedule_and_one_changes_nothing_else():
    for script in (train_stage1, train_cropper, train_stage2, train_end2end):
        short, best = script.RECIPES.paper_short, script.RECIPES.best
        made = ablation.adopt(short, best, ablation.fields_of("all"))
        for part in ("augmentation", "dice", "theta_beta", "jitter", "coarse_weight", "theta_weight"):
            assert getattr(made, part) == getattr(best, part), (script.__name__, part)
        assert made.model.items() >= best.model.items()
        for part in ("optimizer", "schedule", "weight_decay", "clip"):
            assert getattr(made.optimisation, part) == getattr(best.optimisation, part), (script.__name__, part)
        assert made.optimisation.lr == short.optimisation.lr
        alone = ablation.adopt(short, best, ablation.fields_of("mirror"))
        assert alone.augmentation.mirror == best.augmentation.mirror > 0
        assert ablation.adopt(alone, short, ablation.fields_of("mirror")) == short


def test_cost_counts_what_the_specification_counts():
    whole = common.cost(STNiCNNConfig(), ("coarse",))
    assert whole["parameters"] == 559_931
    assert whole["gflop"] == pytest.approx(2.69, abs=0.02)
    assert common.cost(STNiCNNConfig(), ("parts",))["gflop"] == pytest.approx(5.54, abs=0.05)


@pytest.fixture
def run(tiny_options, tmp_path):
    """Runs an experiment; what it wrote."""

    def run(script, *words):
        assert script.main([*tiny_options, "--out", str(tmp_path / "out"), *map(str, words)]) == 0
        return json.loads((tmp_path / "out" / f"{script.NAME}.json").read_text())

    return run


@pytest.fixture
def trained(monkeypatch, weights) -> list[tuple[str, Plan]]:
    """The stages of the chain that an experiment trains, none of which takes any time."""
    trained = []

    def train_stage(stage, plan):
        trained.append((stage, plan))
        plan.folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(weights, plan.folder / "best.pt"))

    monkeypatch.setattr(reproduce, "train_stage", train_stage)
    monkeypatch.setattr(reproduce, "score", lambda *_: {"paper": {"overall": 0.5}, "strict": {"mean": 0.4}})
    return trained


def test_hidden_parts_are_covered_in_photo_and_thumb_and_nowhere_else(val_faces):
    batch = val_faces.first(2)
    boxes_BP4 = part_boxes(batch.labels_BHW)
    hidden_BP = np.zeros((2, 6), bool)
    hidden_BP[1, 4] = True
    covered = hidden_parts.hide(batch, boxes_BP4, hidden_BP)
    assert torch.equal(covered.photos_BHW3[0], batch.photos_BHW3[0])
    assert torch.equal(covered.thumbs_BTT3[0], batch.thumbs_BTT3[0])
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
    assert not torch.equal(covered.thumbs_BTT3[1], batch.thumbs_BTT3[1])


def test_parts_are_hidden_one_after_the_other_in_an_order_of_the_seed():
    present = np.array([True, True, False, True, True, True])
    order = hidden_parts.hiding_order(present, 3, 7)
    assert sorted(order) == [0, 1, 3, 4, 5]
    assert order == hidden_parts.hiding_order(present, 3, 7)
    assert len({tuple(hidden_parts.hiding_order(present, 3, index)) for index in range(20)}) > 10


def test_hidden_parts_gives_a_row_for_each_number_and_cropper(run, weights):
    rows = run(hidden_parts, "--checkpoint", weights)["rows"]
    assert [(row["hidden"], row["cropper"]) for row in rows] == [(k, c) for k in range(7) for c in common.CROPPERS]
    assert rows[0]["hidden_only"] is None
    assert rows[-1]["hidden_only"] == rows[-1]["all"]
    assert all(0 <= row["all"]["miss_rate"] <= 1 and row["f1"]["overall"] is not None for row in rows)


def test_odd_crops_equal_slices_and_even_ones_do_not(run):
    even, odd = run(crop_parity, "--sizes", "40", "41")["rows"]
    assert odd["error"] < 1e-3
    assert odd["f1"] == {"overall": 1.0, "strict": 1.0}
    assert even["error"] > 1
    assert even["f1"]["strict"] < 0.99


def test_coarse_sizes_are_trained_once_and_compared(run, tmp_path, capsys):
    small = ["--sizes", "32", "48", "--epochs", "1", "1", "--batch-size", "2", "--max-images", "2", "--crop-size", "33"]
    command = [*small, "--recipe", "best", "--runs", tmp_path]
    rows = run(coarse_size, *command)["rows"]
    assert [row["size"] for row in rows] == [32, 48]
    assert rows[1]["gflop"] > 2 * rows[0]["gflop"]
    assert all(row["windows"][name]["pixels_mean"] > 0 for row in rows for name in common.CROPPERS)
    capsys.readouterr()
    assert run(coarse_size, *command)["rows"] == rows
    printed = capsys.readouterr().out
    assert printed.count("finished already") == 4
    assert "epoch 1/1 " not in printed


def test_displaced_windows_are_off_as_those_of_the_face_before_that_has_the_part():
    truth_NP23 = torch.tensor([[0.2, 0, 0.1, 0, 0.1, 0.0], [0.3, 0, 0.0, 0, 0.3, 0.0], [0.4, 0, -0.3, 0, 0.5, 0.2]])
    found_NP23 = torch.tensor([[0.4, 0, 0.2, 0, 0.1, -0.1], [0.3, 0, 0.9, 0, 0.3, 0.9], [0.4, 0, -0.1, 0, 0.5, 0.2]])
    truth_NP23, found_NP23 = (theta.view(3, 1, 2, 3) for theta in (truth_NP23, found_NP23))
    made_NP23 = true_windows.displaced(truth_NP23, found_NP23, torch.tensor([[True], [False], [True]]))
    # the first face's window is twice as wide as the true one and off by half its width and its whole height, the
    # last one's by half its width; the second face lacks the part
    expected = torch.tensor([[0.2, 0, 0.2, 0, 0.1, 0.0], [0.3, 0, 0.9, 0, 0.3, 0.9], [0.8, 0, -0.1, 0, 0.5, -0.3]])
    torch.testing.assert_close(made_NP23, expected.view(3, 1, 2, 3))


def test_true_windows_are_compared_with_windows_as_near(run, weights):
    rows = {row["windows"]: row for row in run(true_windows, "--checkpoint", weights)["rows"]}
    assert len(rows) == 5
    assert rows[true_windows.TRUE]["off"] == {"pixels": 0.0, "sides": 0.0}
    assert rows[true_windows.LOCALIZER]["off"]["pixels"] > 0
    assert all(row["f1"]["overall"] is not None for row in rows.values())


def test_kinds_are_read_off_the_true_parts():
    names = ("background", "skin", "glasses")
    turn_N, roll_N = np.array([0.0, 0.5, np.nan]), np.array([0.0, 20.0, np.nan])
    present_NP = np.array([[True] * 6, [True] * 6, [True, True, False, True, True, True]])
    labels_NK = np.array([[True, True, False]] * 3)
    traits = kinds.Traits(labels_NK, present_NP, turn_N, roll_N, np.array([0.2, 0.5, 0.8]))
    found = {kind: chosen.tolist() for kind, chosen in kinds.kinds(traits, names).items()}
    assert found["all"] == [True, True, True]
    assert found["glasses"] == [False, False, False]
    assert found["an eye hidden"] == [False, False, True]
    assert found["head turned"] == [False, True, False]
    assert found["head tilted by more than 10°"] == [False, True, False]
    assert found["skin in the darkest fifth"] == [True, False, False]
    assert found["skin in the brightest fifth"] == [False, False, True]


def test_turned_and_tilted_heads_are_measured_by_eyes_and_nose(val_faces, monkeypatch):
    faces = val_faces
    present, centres, extents = faces.parts()
    for k, (left, right, nose) in enumerate((((20, 30), (40, 30), (30, 40)), ((20, 20), (40, 40), (40, 40)))):
        centres[k, 2:5] = left, right, nose
        present[k] = True
    present[2, 3] = False
    monkeypatch.setattr(faces, "parts", lambda: (present, centres, extents))
    traits = kinds.measure(faces)
    np.testing.assert_allclose(traits.turn_N, [0, 0.5, np.nan], atol=1e-6)
    np.testing.assert_allclose(traits.roll_N, [0, 45, np.nan], atol=1e-6)
    skin = faces.photo(0)[faces.ids(0) == 1].astype(float)
    assert traits.brightness_N[0] == pytest.approx((skin @ [0.299, 0.587, 0.114]).mean() / 255)


def test_kinds_of_faces_are_scored_apart(run, weights):
    rows = {row["kind"]: row for row in run(kinds, "--checkpoint", weights)["rows"]}
    assert rows["all"]["faces"] == 3
    assert rows["skin in the darkest fifth"]["faces"] == 1
    assert "glasses" not in rows  # HELEN does not know them


def test_few_images_compares_both_starts_and_the_curve_reuses_its_runs(run, tmp_path, capsys):
    small = ["--epochs", "1", "--batch-size", "2", "--coarse-size", "32", "--runs", tmp_path]
    drawn = ["--drawn", "2", "--drawn-size", "48"]
    rows = run(few_images, *small, *drawn, "--counts", "0", "2", "all")["rows"]
    assert [row["faces"] for row in rows] == [0, 2, 4]
    assert rows[0]["scratch"] is None
    assert all(row[start]["overall"] is not None for row in rows[1:] for start in few_images.STARTS)
    logs = [tmp_path / f"few_images/stage1/scratch-{n}/stage1/log.jsonl" for n in (2, 4)]
    assert [len(log.read_text().splitlines()) for log in logs] == [2, 1]  # epochs of one and of two steps
    capsys.readouterr()
    run(few_images, *small, "--scratch-only", "--counts", "2", "all")
    assert "epoch 1/1 " not in capsys.readouterr().out
    curve = json.loads((tmp_path / "out" / "training_images.json").read_text())
    assert curve["fit"]["strict"]["faces"] == 18_000
    assert [row["scratch"] for row in curve["rows"]] == [row["scratch"] for row in rows[1:]]


def test_few_images_starts_the_chain_s_networks_from_the_drawn_faces(run, trained, tmp_path):
    run(few_images, "--runs", tmp_path, "--stage", "chain", "--epochs", 1, 1, 1, 1, "--counts", 0, 2)
    assert [stage for stage, _ in trained] == 3 * list(reproduce.STAGES)
    inits = [[path.parts[-3:-1] for path in plan.start.values()] for _, plan in trained]
    assert inits[:4] == [[], [("drawn", "stage1")], [], [("drawn", "cropper"), ("drawn", "stage2")]]
    assert inits[4:8] == [[], [("scratch-2", "stage1")], [], [("scratch-2", "cropper"), ("scratch-2", "stage2")]]
    assert inits[8] == [("drawn", "stage1")]
    assert inits[10:] == [[("drawn", "stage2")], [("drawn-2", "cropper"), ("drawn-2", "stage2")]]
    assert [plan.data.dataset for _, plan in trained] == 4 * ["synthetic"] + 8 * ["helen"]


def test_the_ablation_trains_what_a_change_touches_and_counts_its_cost(run, tmp_path):
    small = ["--epochs", "1", "--batch-size", "2", "--max-images", "2", "--crop-size", "33", "--runs", tmp_path]
    rows = run(ablation, *small, "--rows", "jitter", "taught", "all")["rows"]
    assert [row["change"] for row in rows] == ["paper-short", "jitter", "all"]  # stage 2 knows no end to end
    assert all(row["parameters"] == 2_185_140 and row["gflop"] > 0.5 for row in rows)
    recipe = json.loads((tmp_path / "ablation/stage2/jitter/stage2/config.json").read_text())["recipe"]
    assert recipe["jitter"] == train_stage2.RECIPES.best.jitter
    assert recipe["dice"] == 0


def test_the_ablation_of_the_chain_reuses_stages_that_a_change_leaves_alone(run, trained, tmp_path):
    run(ablation, "--runs", tmp_path, "--stage", "chain", "--rows", "jitter", "taught")
    assert [f"{plan.folder.parent.name}/{stage}" for stage, plan in trained] == [
        *(f"paper-short/{stage}" for stage in reproduce.STAGES),
        *("jitter/stage2", "jitter/end2end", "taught/cropper", "taught/end2end"),
    ]


def test_written_commands_name_no_folder_of_this_machine():
    words = "--data faces --cache=/c/d --checkpoint /a/b.pt c/d.pt --out=/results/mine --seed 3 /a/x.jpg"
    shown = "--data DIR --cache=DIR --checkpoint DIR/b.pt c/d.pt --out=DIR/mine --seed 3 DIR/x.jpg"
    assert " ".join(common.portable(words.split())) == shown
    assert common.portable([]) == []


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (crop_parity, ["--sizes", "4"], "--sizes 4: .*crop size between 8"),
        (few_images, ["--counts", "9"], "--counts 9: there are only 4 faces"),
        (few_images, ["--counts", "some"], "neither a number nor all"),
        (few_images, ["--scratch-only", "--counts", "0"], "--counts 0: "),
        (few_images, ["--drawn", "0"], "--drawn 0: must be at least 1"),
        (few_images, ["--stage", "chain", "--epochs", "3"], "--epochs 3: give 4, of stage1"),
        (ablation, ["--rows", "luck"], "invalid choice: 'luck'"),
        (ablation, ["--epochs", "0"], "--epochs 0: must be at least 1"),
        (hidden_parts, ["--checkpoint", "nowhere.pt"], "nowhere.pt: no such checkpoint"),
        (hidden_parts, ["--checkpoint", "TINY"], r"tiny.pt holds tiny, but .* compares windows of stn_icnn"),
        (coarse_size, ["--sizes", "8", "--max-images", "2"], "--sizes 8: coarse size must lie between"),
        (crop_parity, ["--out", "/proc/none"], "--out /proc/none cannot be made"),
    ],
)
def test_each_mistake_makes_one_line(script, words, message, tiny_options, other_parser, tmp_path):
    runs = [] if script in (crop_parity, hidden_parts) else ["--runs", str(tmp_path)]
    words = [word.replace("TINY", str(other_parser)) for word in words]
    with pytest.raises(InputError, match=f"^.*{message}.*$"):
        script.main([*tiny_options, "--out", str(tmp_path), *runs, *words])


def test_robustness_changes_photo_and_labels_alike(run, weights):
    labels = np.zeros((100, 120), np.uint8)
    labels[30:40, 80:90] = 5
    face, shapes = (np.repeat(labels[:, :, None] * 50, 3, 2), labels), {}
    for name, change in robustness.CONDITIONS.items():
        new_photo, new_labels = change(face, np.random.default_rng(0))
        shapes[name] = new_labels.shape
        assert new_photo.shape == (*new_labels.shape, 3), name
        if name.startswith(("rotated by", "shifted", "scaled", "3:4", "4:3")):
            assert ((new_photo[..., 0] > 125) == (new_labels == 5)).mean() > 0.99, name
            assert 20 < (new_labels == 5).sum() < 250, name
    assert (shapes["3:4"], shapes["4:3"]) == ((100, 90), (76, 120))
    rows = run(robustness, "--max-images", "1", "--checkpoint", weights)["rows"]
    assert [row["condition"] for row in rows] == list(robustness.CONDITIONS)


@pytest.mark.parametrize("script", [kinds, robustness])
def test_parsers_without_windows_and_with_other_labels_are_scored_too(script, run, other_parser):
    rows = run(script, "--max-images", "2", "--checkpoint", str(other_parser))["rows"]
    assert all(0 <= score <= 1 for row in rows for score in row["f1"].values())


def test_fused_compares_each_label_of_the_three_parsers(run, other_parser):
    result = run(fused, "--whole", str(other_parser))
    rows = {row["label"]: row for row in result["rows"]}
    assert list(rows) == list(HELEN.foreground)
    assert rows["hair"]["f1"]["parts"] is None
    assert rows["nose"]["f1"]["parts"] == pytest.approx(rows["nose"]["f1"]["fused"], abs=0.1)  # the same nose
    assert result["means"]["miou"].keys() == {"whole face", "parts", "fused"}
    assert "| mean_f1_inner8" in fused.table(result)


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
