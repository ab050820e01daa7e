"""Confusion matrices and what comes of them: scores, tables, CSV; pictures of results."""

import csv
import io

import numpy as np
import pytest
import torch

from data.labels import CELEBAMASK, HELEN, NINE, LabelSet
from geometry.theta import window_corners
from scoring import metrics
from scoring.evaluation import evaluate
from scoring.metrics import confusion_matrices, confusion_matrix, headline, scores, table, to_csv
from scoring.pictures import colour, draw_outlines, face_pictures, legend, overlay, progress_picture, tile
from tests.fixtures import batch_of

MEASURES = ("strict", "iou", "precision", "recall")
ONE_SIDED = {"upper_lip": 0, "lower_lip": 0, "mean": 1 / 3}
TWO = LabelSet("two", ("background", "left", "right"), ((0, 0, 0), (255, 0, 0), (0, 255, 0)))


def random_maps(seed=0, shape=(3, 17, 23), count=9):
    rng = np.random.default_rng(seed)
    return rng.integers(0, count, shape).astype(np.uint8), rng.integers(0, count, shape).astype(np.uint8)


def nine_matrix(pred, truth):
    return confusion_matrix(pred, truth, len(NINE))


def nine_scores(pred, truth):
    return scores(nine_matrix(pred, truth), NINE)


HAND_WORKED = {  # truth, prediction, what comes of it
    "confusion inside a group": (
        *([3, 3, 4, 4], [4, 3, 4, 4]),
        {"paper.eyes": 1, "strict.eye1": 2 / 3, "strict.eye2": 4 / 5, "strict.mean": (2 / 3 + 4 / 5) / 2},
    ),
    "3 right, 1 missed, 1 too many": (
        *([5, 5, 5, 5, 0, 0, 0, 0], [5, 5, 5, 0, 5, 0, 0, 0]),
        {"strict.nose": 6 / 8, "iou.nose": 3 / 5, "precision.nose": 3 / 4, "recall.nose": 3 / 4},
    ),
    "all foreground named wrongly": (
        *(list(range(9)), [0, *range(2, 9), 1]),
        {"paper.overall": 1, **{f"strict.{name}": 0 for name in (*NINE.foreground, "mean")}},
    ),
    "a label that is absent": (
        *([0, 5, 5, 6], [0, 5, 5, 0]),
        {"strict.inner_mouth": None, "strict.upper_lip": 0, "strict.mean": 0.5, "paper.in_mouth": None},
    ),
    "a label on one side only": (
        *([5, 0, 8], [5, 6, 0]),
        {f"{measure}.{name}": value for measure in MEASURES for name, value in ONE_SIDED.items()},
    ),
    "no foreground": ([0] * 7, [0] * 7, {"paper.overall": None, "paper.eyes": None, "strict.mean": None}),
    "no pixel": ([], [], {"paper.overall": None, "strict.mean": None}),
}


@pytest.mark.parametrize("case", HAND_WORKED)
def test_a_hand_worked_case_gives_the_hand_worked_scores(case):
    truth, pred, wanted = HAND_WORKED[case]
    matrix, expected = nine_matrix(np.array(pred, int), np.array(truth, int)), np.zeros((9, 9), np.int64)
    np.add.at(expected, (truth, pred), 1)
    assert np.array_equal(matrix, expected)
    result = scores(matrix, NINE)
    for name, value in wanted.items():
        measure, label = name.split(".")
        assert result[measure][label] == (None if value is None else pytest.approx(value)), name
    assert result["absent"] == [name for label, name in enumerate(NINE.names) if label and label not in truth + pred]


def test_the_table_shows_both_protocols_and_a_dash_for_what_is_absent():
    half = nine_scores(np.array([5, 0]), np.array([5, 5]))
    text = table({"a|b": half, "whole": nine_scores(*random_maps())}, NINE)
    lines = text.splitlines()
    assert lines[0] == "| F1, paper | eyes | brows | nose | in_mouth | upper_lip | lower_lip | mouth | overall |"
    assert lines[2] == "| a\\|b | – | – | 0.6667 | – | – | – | – | 0.6667 |"
    assert lines[5].split(" | ")[1:] == [*NINE.names[1:-1], "lower_lip", "mean |"]
    assert lines[7].count("–") == 7
    assert len(lines) == 9


def test_the_csv_holds_every_measure_in_full_precision():
    result = nine_scores(*random_maps())
    half = nine_scores(np.array([5, 0]), np.array([5, 5]))
    first, second = csv.DictReader(io.StringIO(to_csv({"random, maps": result, "half": half}, NINE)))
    assert first["name"] == "random, maps"
    assert float(first["paper.overall"]) == result["paper"]["overall"]
    assert float(first["recall.lower_lip"]) == result["recall"]["lower_lip"]
    assert second["strict.eye1"] == ""


def test_a_label_set_without_groups_has_hand_worked_strict_scores_alone():
    truth = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    pred = np.array([0, 1, 1, 1, 1, 2, 2, 2])
    result = scores(confusion_matrix(pred, truth, len(TWO)), TWO)
    assert (result["paper"], result["absent"]) == ({}, [])
    assert result["strict"] == pytest.approx({"left": 6 / 8, "right": 4 / 5, "mean": 0.775})
    assert headline(result) == {"overall": None, "strict": pytest.approx(0.775)}
    assert table({"a": result}, TWO) == (
        "| F1, strict | left | right | mean |\n| --- | ---: | ---: | ---: |\n| a | 0.7500 | 0.8000 | 0.7750 |\n"
    )
    assert metrics.measures_table(result, TWO).splitlines()[2:] == [
        "| IoU | 0.6000 | 0.6667 | 0.6333 |",
        "| precision | 0.7500 | 0.6667 | 0.7083 |",
        "| recall | 0.7500 | 1.0000 | 0.8750 |",
    ]
    assert to_csv({"a": result}, TWO).startswith("name,strict.left,strict.right,strict.mean,iou.left,")


@pytest.mark.parametrize(("count", "dtype"), [(2, torch.int64), (19, torch.uint8), (255, torch.uint8)])
def test_the_faces_of_a_padded_batch_are_counted_as_each_alone(count, dtype):
    maps = random_maps(shape=(4, 20, 30), count=count)
    pred, truth = (torch.from_numpy(ids).to(dtype) for ids in maps)
    sizes = torch.tensor([[20, 30], [7, 30], [20, 1], [3, 4]])
    counts = confusion_matrices(pred, truth, sizes, count)
    assert counts.dtype == torch.int64
    for b, (height, width) in enumerate(sizes.tolist()):
        want = confusion_matrix(pred[b, :height, :width], truth[b, :height, :width], count)
        assert np.array_equal(counts[b].numpy(), want)


def test_counting_a_batch_reads_nothing_back_from_the_device():
    maps = torch.zeros(2, 2, 5, 6, dtype=torch.uint8, device="meta")  # where reading a value raises
    counts = confusion_matrices(*maps, torch.zeros(2, 2, dtype=torch.long, device="meta"), 9)
    assert counts.shape == (2, 9, 9)
    with pytest.raises(RuntimeError):
        int(counts.sum())
    assert confusion_matrices(*torch.zeros(2, 0, 5, 6, dtype=torch.uint8), torch.zeros(0, 2), 9).shape == (0, 9, 9)


def test_labels_that_the_set_does_not_have_are_neither_scored_nor_painted():
    for true in (0, 8):  # of the last label, the pixels would be counted beyond the matrix
        batch = batch_of([(photo_of(4, 4), np.full((4, 4), true, np.uint8))] * 2, NINE)
        with pytest.raises(ValueError, match=r"32 pixels hold ids that are not 0\.\.8"):
            evaluate(lambda batch: torch.full_like(batch.labels_BHW, 9), [batch], torch.device("cpu"), 9)
    with pytest.raises(ValueError, match="9 labels of nine"):
        scores(np.zeros((11, 11), np.int64), NINE)
    with pytest.raises(ValueError, match=r"0\.\.8"):
        colour(np.array([[0, 9]], np.uint8), NINE)


COLOURS = np.array(NINE.colours, np.uint8)


def photo_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def window(height, width, left, top, right, bottom):
    """Theta whose crop's corner pixels are the given ones."""
    x = np.array([left, right]) / (width - 1) * 2 - 1
    y = np.array([top, bottom]) / (height - 1) * 2 - 1
    return np.array([[(x[1] - x[0]) / 2, 0, x.mean()], [0, (y[1] - y[0]) / 2, y.mean()]])


def absent_windows():
    return np.full((6, 2, 3), np.nan)


@pytest.mark.parametrize("labels", [NINE, CELEBAMASK], ids=lambda labels: labels.name)
def test_an_overlay_leaves_background_untouched_and_blends_the_colours_of_its_label_set_with_the_rest(labels):
    photo, ids = photo_of(4, len(labels)), np.tile(np.arange(len(labels), dtype=np.uint8), (4, 1))
    before = photo.copy()
    out = overlay(photo, ids, labels, 0.25)
    assert out.dtype == np.uint8
    assert np.array_equal(out[:, 0], photo[:, 0])
    assert np.array_equal(out[:, 1:], np.rint(0.75 * photo + 0.25 * np.array(labels.colours))[:, 1:])
    assert np.array_equal(photo, before)


@pytest.mark.parametrize("part", range(6))
def test_a_window_is_drawn_on_the_corner_pixels_of_its_crop_in_its_part_s_colour(part):
    photo, theta = np.zeros((61, 101, 3), np.uint8), absent_windows()
    theta[part] = window(61, 101, 20, 10, 70, 40)
    drawn = draw_outlines(photo, window_corners(theta, (61, 101)), NINE)
    want = np.zeros((61, 101), bool)
    want[10:41, 20:71] = True
    want[11:40, 21:70] = False
    assert np.array_equal(drawn, want[..., None] * COLOURS[NINE.part_ids[part][0]])
    assert not photo.any()


@pytest.mark.parametrize("shape", [(1, 1), (20, 2000), (512, 3)])
def test_windows_beyond_the_photo_and_odd_photos_are_drawn_without_complaint(shape):
    theta = np.tile(np.array([[1e9, 0, 0], [0, 3.0, -1e9]]), (6, 1, 1))
    assert draw_outlines(photo_of(*shape), window_corners(theta, shape), NINE).shape == (*shape, 3)
    whole = window_corners(np.tile(np.eye(2, 3), (6, 1, 1)), shape)
    assert draw_outlines(photo_of(*shape)[::-1, ::-1], whole, NINE).shape == (*shape, 3)


def test_tiles_are_letterboxed_in_reading_order():
    red, green = np.full((10, 20, 3), (255, 0, 0), np.uint8), np.full((400, 100, 3), (0, 255, 0), np.uint8)
    sheet = tile([red, green, red], 2, 40)
    wanted = np.zeros((80, 80, 3), np.uint8)
    wanted[10:30, :40] = wanted[50:70, :40] = 255, 0, 0
    wanted[:40, 55:65] = 0, 255, 0
    assert np.array_equal(sheet, wanted)


@pytest.mark.parametrize("labels", [NINE, HELEN, CELEBAMASK], ids=lambda labels: labels.name)
def test_the_legend_shows_every_label_with_a_readable_name(labels):
    picture = legend(labels)
    assert picture.dtype == np.uint8
    bars = picture.reshape(len(labels), -1, picture.shape[1], 3).astype(int)
    colours = np.array(labels.colours, float)
    apart = np.linalg.norm(colours[:, None] - colours, axis=2) + 1000 * np.eye(len(colours))
    assert apart.min() > 75
    for bar, rgb in zip(bars, np.array(labels.colours), strict=True):
        distance = np.abs(bar - rgb).sum(axis=2)
        assert (distance == 0).mean() > 0.6
        assert (distance > 200).sum() > 20


def test_pictures_of_a_batch_show_faces_at_their_own_size_and_progress_predictions_above_the_truth():
    truths = [np.zeros(size, np.uint8) for size in ((40, 30), (20, 50))]
    for truth in truths:
        truth[:10] = 1
    batch = batch_of([(photo_of(*truth.shape), truth) for truth in truths], TWO)
    photos = [batch.photos_BHW3[0, :, :30].numpy(), batch.photos_BHW3[1, :20].numpy()]
    shown = [*face_pictures(batch, batch.labels_BHW)]
    for picture, photo, truth in zip(shown, photos, truths, strict=True):
        assert np.array_equal(picture, overlay(photo, truth, TWO))
    progress = progress_picture(batch, torch.zeros_like(batch.labels_BHW))
    assert np.array_equal(progress, np.concatenate([tile(photos, 2, 192), tile(shown, 2, 192)]))
