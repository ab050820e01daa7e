import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
from data.labels import CELEBAMASK, HELEN, NINE, ORDERS, read_ids
from data.loaders import evaluation_batches, open_faces
from data.source import FaceData
from models.loading import load_parser
from models.stn_icnn.model import STNiCNN, STNiCNNConfig
from scoring.metrics import scores
from tests.damage import refuses
from tests.fixtures import TO_CELEBAMASK, draw_faces, lively, save_palette, save_parser, two_processes, write_challenge
from utils import files
from utils.errors import InputError

FACES = (  # where {} has a data set
    "--dataset celebamask --data {0}/faces --cache {0}/cache --split val --workers 0 --device cpu --amp off"
)
CONFIG = STNiCNNConfig(coarse_size=32, crop_size=17, window_margin=1.6, paste="bilinear")
STAGES = {
    "stage1": ("coarse",),
    "cropper": ("coarse", "localizer"),
    "stage2": ("parts",),
    "end2end": ("coarse", "localizer", "parts"),
}


def save_models(folder):
    """One random model as a checkpoint of each stage: {stage: path}."""
    torch.manual_seed(0)
    model = lively(STNiCNN(CONFIG))
    return {stage: str(save_parser(folder / f"{stage}.pt", model, stage, names)) for stage, names in STAGES.items()}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny data set, models, and a function that evaluates with them and returns scores.json."""
    root = tmp_path_factory.mktemp("evaluate")
    write_challenge(root / "faces", draw_faces(train=1, val=5, test=2, size=64))
    models = save_models(root)
    count = iter(range(1000))

    def run(*checkpoints, crops="predicted", more=""):
        out = root / f"out{next(count)}"
        files = " ".join(models[name] for name in checkpoints)
        line = f"{FACES.format(root)} --crops {crops} --out {out} --batch-size 2 --checkpoint {files} {more}"
        assert evaluate.main(line.split()) == 0
        return json.loads((out / "scores.json").read_text()), out

    return root, models, run


@pytest.mark.parametrize("crops", ["predicted", "none"])
def test_what_is_written_are_the_scores_of_each_face_labelled_alone(world, crops):
    root, models, run = world
    result, out = run("end2end", crops=crops)
    model = load_parser([Path(models["end2end"])], crops)
    faces = open_faces(FaceData("celebamask", root / "faces", cache=root / "cache"), "val", NINE)
    matrix = np.zeros((9, 9), int)
    with torch.inference_mode():
        for batch in evaluation_batches(faces, 1):
            np.add.at(matrix, (batch.labels_BHW.numpy(), model.parse(batch).labels_BHW.numpy()), 1)
    assert result["confusion"] == matrix.tolist()
    expected = scores(matrix, NINE)
    assert all(result[name] == expected[name] for name in ("paper", "strict", "precision", "recall", "absent"))
    about = {"images": 5, "labels": "nine", "split": "val", "dataset": "celebamask", "crops": crops}
    about |= {"checkpoint": models["end2end"], "sha256": [files.sha256(Path(models["end2end"]))]}
    assert about.items() <= result.items()
    assert f"{result['paper']['overall']:.4f}" in (out / "scores.md").read_text()
    assert "paper.overall" in (out / "scores.csv").read_text()


@pytest.mark.parametrize(
    ("stages", "crops"),
    [(("cropper", "stage2"), "predicted"), (("stage2",), "truth"), (("stage1", "stage2"), "baseline")],
)
def test_stage_checkpoints_together_score_as_the_whole(world, stages, crops):
    _, _, run = world
    assert run(*stages, crops=crops)[0]["confusion"] == run("end2end", crops=crops)[0]["confusion"]


def test_the_worst_faces_come_first(world):
    _, _, run = world
    result, out = run("end2end", crops="truth", more="--worst 2")
    first, second = result["worst"]
    assert first["strict_mean"] <= second["strict_mean"]
    pictures = sorted((out / "worst").iterdir())
    assert [path.name[:4] for path in pictures] == ["001_", "002_"]
    assert pictures[0].name == f"001_{first['strict_mean']:.4f}_{first['name']}.jpg"
    assert Image.open(pictures[0]).size == (3 * 64, 64)


@pytest.mark.parametrize("name", ["scores.json", "worst/001_0.5000_mine.jpg"])
def test_scores_are_replaced_only_when_asked(name, world, tmp_path):
    root, models, _ = world
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    argv = f"{FACES.format(root)} --checkpoint {models['stage1']} --crops none --out {tmp_path}/out".split()
    with refuses(f"already holds {name}: choose another --out, or add --overwrite"):
        evaluate.main(argv)
    assert file.read_text() == "mine"
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [file]
    assert evaluate.main([*argv, "--overwrite", "--max-images", "1"]) == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["images"] == 1


def write_folders(root, pred, truth, folder="pred"):
    for name, maps in ((folder, pred), ("truth", truth)):
        (root / name).mkdir()
        for stem, ids in maps.items():
            save_palette(root / name / f"{stem}.png", np.asarray(ids, np.uint8))
    return ["--predictions", str(root / folder), "--truth", str(root / "truth"), "--device", "cpu"]


def test_two_folders_may_use_the_ids_of_their_data_sets_and_odd_names(tmp_path):
    long, pred = "a" * 250, os.fsdecode(b"pr\xffd")  # as long as disks allow; no UTF-8
    helen = np.array([0, *range(2, 10)])[None]
    argv = write_folders(tmp_path, {long: helen}, {long: TO_CELEBAMASK[helen]}, pred)
    out = ["--out", str(tmp_path / "out"), "--worst", "1"]
    assert evaluate.main([*argv, "--ids", "helen", "--truth-ids", "celebamask", *out]) == 0
    result = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert (result["labels"], result["confusion"]) == ("nine", np.eye(9, dtype=int).tolist())
    assert result["strict"]["mean"] == 1
    (picture,) = (tmp_path / "out" / "worst").iterdir()
    assert picture.name.startswith("001_1.0000_aaa")
    assert "pr\\udcffd" in (tmp_path / "out" / "scores.md").read_text()


def test_folders_that_do_not_pair_and_ids_that_do_not_exist_are_told_in_full(tmp_path):
    argv = write_folders(tmp_path, {"a": [[0]], "b": [[0]], "s": [[0, 9]]}, {"a": [[0]], "c": [[0]], "s": [[0]]})
    with refuses("pred lacks 1 (c.png)", "truth lacks 1 (b.png)", "sizes differ", "1 (s.png)"):
        evaluate.main(argv)
    for name in ("pred/b.png", "truth/c.png"):
        (tmp_path / name).unlink()
    save_palette(tmp_path / "truth" / "s.png", np.zeros((1, 2), np.uint8))
    with pytest.raises(InputError, match=r"s\.png holds ids that nine does not have: 1 \(9\)"):
        evaluate.main(argv)


def test_two_processes_score_as_one(world, capfd):
    root, models, run = world
    alone, _ = run("end2end", more="--worst 5")
    out = root / "two"
    line = f"{FACES.format(root)} --out {out} --checkpoint {models['end2end']} --worst 5"
    capfd.readouterr()
    assert two_processes("evaluate.py", *line.split()) == [0, 0]
    together = json.loads((out / "scores.json").read_text())
    assert together["confusion"] == alone["confusion"]
    assert together["worst"] == alone["worst"]  # each face has its own matrix
    assert len({face["strict_mean"] for face in alone["worst"]}) > 1
    assert capfd.readouterr().out.count("F1, paper") == 1


def test_label_maps_in_other_orders_and_with_other_sides_are_scored_right(tmp_path, capsys):
    ids = np.arange(19).repeat(2)[None]
    bisenet = np.array([ORDERS["bisenet"].index(name) for name in CELEBAMASK.names])[ids]
    argv = write_folders(tmp_path, {"a": bisenet}, {"a": ids})
    (tmp_path / "map.json").write_text(json.dumps(dict(enumerate(ORDERS["bisenet"]))))
    for order in ("bisenet", str(tmp_path / "map.json"), "celebamask"):
        out = tmp_path / "out" / Path(order).name
        assert evaluate.main([*argv, "--ids", order, "--truth-ids", "celebamask", "--out", str(out)]) == 0
        mean = json.loads((out / "scores.json").read_text())["strict"]["mean"]
        noted = "note: labels are exchanged (brow2 -> nose" in capsys.readouterr().out
        assert (mean == 1) != noted
        assert noted == (order == "celebamask")
    helen = np.arange(11)[None]
    (tmp_path / "sides").mkdir()
    argv = write_folders(tmp_path / "sides", {"a": np.array(HELEN.mirror)[helen]}, {"a": helen})
    for order in ("helen", "lapa"):
        out = tmp_path / "sides" / order
        assert evaluate.main([*argv, "--ids", order, "--out", str(out)]) == 0
        assert json.loads((out / "scores.json").read_text())["strict"]["mean"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["background", "noze"]', "unknown labels noze: choose from background, brow1"),
        ('{"0": "background", "2": "nose"}', "name every id from 0 on"),
        ('"nose"', "must hold a list"),
        ("[", "is damaged"),
    ],
)
def test_orders_that_cannot_be_used_are_one_line(tmp_path, text, message):
    (tmp_path / "ids.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_ids(str(tmp_path / "ids.json"))
    with pytest.raises(InputError, match=r"choose from nine, .*bisenet, or give a file\.json"):
        read_ids("bisenett")
