"""Label sets of the user's own, ignored pixels, and data sets that lack a split."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import predict
import train_deeplab
from data.edges import edges
from data.labels import HELEN, NINE, label_set, read_label_set
from data.loaders import open_faces
from data.source import FaceData
from data.view import Augmentation
from models.loading import load_parser
from models.stn_icnn.parts import part_targets
from scoring.metrics import confusion_matrices, confusion_matrix
from tests.fixtures import draw_faces, write_challenge, write_list
from tools import check
from training.losses import batch_dice_loss, boundary_loss, focal_loss, segmentation_loss
from training.relabel import merge
from utils.errors import InputError

IBUGMASK = Path(__file__).parent.parent / "docs" / "ibugmask.json"


def test_own_labels_are_trained_scored_and_predicted_without_their_file(tmp_path: Path, capsys) -> None:
    own, faces = tmp_path / "own.json", draw_faces()
    own.write_text(json.dumps({**json.loads(IBUGMASK.read_text()), "ignores": True}))
    for group in faces.values():
        for _, _, ids in group:
            ids[:3] = 255
    write_list(tmp_path / "data", faces)
    (tmp_path / "data" / "val_list.txt").unlink()
    data = f"--dataset list --data {tmp_path}/data --labels {own}"
    tiny, best = f"{data} --cache {tmp_path}/cache --device cpu --batch-size 2", tmp_path / "run" / "best.pt"
    changes = "--mirror-probability 1 --scale-range 0.9 1.1"
    run = f"{tiny} --input-size 64 --epochs 1 --run-dir {tmp_path}/run {changes}"
    assert train_deeplab.main(run.split()) == 0
    assert "1 of the 3 faces of train_list.txt validate, drawn with seed 0" in capsys.readouterr().out
    assert check.main(data.split()) in (0, 1)
    assert "(ignored)         2     0.0%" in capsys.readouterr().out
    assert evaluate.main(f"{tiny} --checkpoint {best} --out {tmp_path}/scores --worst 1".split()) == 0
    found = json.loads((tmp_path / "scores" / "scores.json").read_text())
    (_, photo, ids), *_ = faces["test"]
    assert np.sum(found["confusion"]) == (ids != 255).sum()
    assert list(found["paper"]) == ["eyes", "brows", "nose", "mouth", "overall"]
    assert found["pixel_accuracy"] == np.trace(found["confusion"]) / np.sum(found["confusion"])
    assert f"pixel accuracy {found['pixel_accuracy']:.4f}" in capsys.readouterr().out
    own.unlink()
    parser = load_parser([best])
    assert (parser.labels.stored, parser.labels.name) == (read_label_set(str(IBUGMASK)).stored, "ibugmask")
    Image.fromarray(photo).save(tmp_path / "face.png")
    line = f"{tmp_path}/face.png --checkpoint {best} --out {tmp_path}/out --faces none --device cpu"
    assert predict.main(line.split()) == 0
    assert Image.open(tmp_path / "out" / "face.png").getpalette()[:6] == [0, 0, 0, 0, 150, 120]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "helen"}, "its own name none of nine"),
        ({"names": ["background"]}, "needs 2 to 255 different names"),
        ({"names": "background"}, "expected a list of names"),
        ({"names": ["background", 3]}, "expected a list of names"),
        ({"colours": [[0, 0, 0]]}, "14 names, but 1 colours"),
        ({"colours": [[0, 0, 300]] * 14}, "three numbers of 0 to 255"),
        ({"pairs": [["left_eye"]]}, "pairs must be of two names"),
        ({"groups": {"eyes": ["eye"]}}, "has no eye"),
        ({"shared": ["nose"]}, "label set 'ibugmask'"),
        ({"colors": []}, "a label set has no colors"),
    ],
)
def test_a_wrong_label_set_is_refused_in_one_line(tmp_path: Path, change: dict, message: str) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({**json.loads(IBUGMASK.read_text()), **change}))
    with pytest.raises(InputError, match=f"own.json: .*{message}"):
        read_label_set(str(own))


def test_own_labels_need_their_names_alone() -> None:
    labels = label_set({"name": "three", "names": ["background", "nose", "beard"]})
    assert labels.colours[:2] == (NINE.colours[0], NINE.colours[5])
    assert len({*labels.colours}) == 3
    assert labels.mirror == (0, 1, 2)
    assert label_set(labels.stored) == labels
    for wrong in ("secret", None, 3, str(IBUGMASK)):  # a checkpoint names no files
        with pytest.raises(InputError, match="unknown label set"):
            label_set(wrong)


def test_ignored_pixels_cost_nothing_and_count_nowhere() -> None:
    logits, targets = torch.randn(2, 9, 6, 8), torch.randint(0, 9, (2, 6, 8))
    ignored = targets.clone()
    ignored[:, :, 5:] = 255
    for loss in (segmentation_loss, lambda x, y: segmentation_loss(x, y, 0.7), focal_loss, batch_dice_loss):
        torch.testing.assert_close(loss(logits, ignored), loss(logits[..., :5], targets[..., :5]))
    assert segmentation_loss(logits, torch.full_like(targets, 255), 1.0) == 0
    assert boundary_loss(logits, ignored, ignored == 255) == 0
    assert not edges(ignored)[:, :, 5:].any()
    assert torch.equal(edges(ignored)[:, :, :5], edges(targets[:, :, :5]))
    predicted, sizes = logits.argmax(1), torch.tensor([[6, 8], [6, 8]])
    counts = confusion_matrices(predicted, ignored, sizes, 9)
    np.testing.assert_array_equal(counts.sum(0), confusion_matrix(predicted[..., :5], targets[..., :5], 9))
    np.testing.assert_array_equal(counts.sum(0), confusion_matrix(predicted, ignored, 9))
    sure = torch.full((1, 9, 1, 3), 0.0)
    sure[:, 2] = 1
    merged = merge(sure, torch.tensor([[[255, 1, 3]]], dtype=torch.uint8), 0.9, torch.arange(9) == 3)
    assert merged.tolist() == [[[255, 2, 3]]]
    crops = torch.full((1, 6, 2, 2), 255, dtype=torch.uint8)
    assert all((target == 255).all() for target in part_targets(crops))


def test_label_maps_with_255_are_read_only_where_that_is_asked_for(tmp_path: Path) -> None:
    faces = draw_faces()
    faces["train"][0][2][:5] = 255
    write_list(tmp_path, faces)
    data = FaceData("list", tmp_path, label_set=HELEN, cache=tmp_path / "cache", ignore=True)
    batch = open_faces(data, "train", NINE).first(2)
    assert (batch.labels_BHW[0, :5] == 255).all()
    assert (Augmentation(mirror=1).view(batch).label_map(64)[0, :3] == 255).all()
    with pytest.raises(InputError, match=r"unknown ids in mask .*0.png: 1 .255.*--ignore-255"):
        open_faces(FaceData("list", tmp_path, label_set=HELEN, cache=tmp_path / "cache"), "train", NINE)


def test_the_challenge_as_it_is_published_passes_the_check(tmp_path: Path, capsys) -> None:
    write_challenge(tmp_path, draw_faces())
    (tmp_path / "test" / "test_image").rename(tmp_path / "test_image")
    shutil.rmtree(tmp_path / "test")
    check.main(["--dataset", "celebamask", "--data", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "note: no masks for split test: looked for" in printed
    assert "problem: no" not in printed
