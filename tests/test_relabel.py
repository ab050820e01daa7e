"""Self-distilled labels: the original's numbers, rare labels, each data set's PNGs, one run, and what is refused."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train_deeplab
from data.labels import CELEBAMASK, HELEN, LabelSet
from data.loaders import open_faces
from data.source import FaceData
from tests.damage import refuses
from tests.fixtures import (
    TO_CELEBAMASK,
    contents,
    draw_faces,
    save_parser,
    write_celebamask_official,
    write_challenge,
    write_helen_merged,
    write_list,
)
from tests.formula import assert_golden, indices, wave
from tests.test_deeplab import GOLDEN, labels19
from tests.test_resume import assert_same_run, fit_until
from tests.tiny_parser import TinyConfig, TinyParser
from tools import relabel as script
from training import relabel
from training.relabel import Rule, merge

FACES = draw_faces(train=3, val=2, test=1)


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[LabelSet], Path]:
    """Writes a checkpoint of the tiny parser that calls everything nose."""

    def write(labels: LabelSet) -> Path:
        torch.manual_seed(0)
        parser = TinyParser(TinyConfig(), labels)
        torch.nn.init.zeros_(parser.network[-1].weight)
        parser.network[-1].bias.data = 10.0 * (torch.arange(len(labels)) == labels.names.index("nose"))
        return save_parser(tmp_path / f"{labels.name}.pt", parser, "tiny")

    return write


def test_merged_labels_are_those_of_the_original():
    b, k, y, x = indices(2, 19, 16, 16)
    step = ((x + 2 * y) % 12) * (k == (x // 2 + y + b) % 19)
    logits = (wave(2, 19, 16, 16) + step).float()
    labels, golden = labels19(2, 16, 16).byte(), GOLDEN["pseudo labels"]
    probabilities = logits.softmax(1)
    merged = merge(probabilities, labels, 0.95, torch.zeros(19, dtype=torch.bool))
    sure = probabilities.amax(1) > 0.95
    assert sure.sum((1, 2)).tolist() == golden["confident pixels of each image"]
    assert (merged != labels).sum((1, 2)).tolist() == golden["changed pixels of each image"]
    changed = (merged != labels).flatten().nonzero().flatten().tolist()
    assert changed == golden["flat indices (over both images) of the changed pixels"]
    counts = merged.flatten().long().bincount(minlength=19).tolist()
    assert counts == golden["pixels of each of the 19 ids after the merge"]
    assert_golden(merged.double(), golden["merged map"])


def test_pixels_of_rare_labels_are_kept_and_others_change_where_a_label_is_above_the_threshold():
    kept = torch.from_numpy(Rule(rare=0.1).keeps(np.array([80, 9, 11])))
    assert kept.tolist() == [False, True, False]
    probabilities = torch.tensor([[0.25, 0.75, 0], [1, 0, 0], [0.75, 0, 0.25]]).T.reshape(1, 3, 1, 3)
    labels = torch.tensor([0, 1, 2], dtype=torch.uint8).reshape(1, 1, 3)
    assert merge(probabilities, labels, 0.74, kept).flatten().tolist() == [1, 1, 0]
    assert merge(probabilities, labels, 0.75, kept).flatten().tolist() == [0, 1, 2]
    assert not Rule(rare=0).keeps(np.array([5, 0])).any()


LAYOUTS = {
    "official": (write_celebamask_official, "celebamask", CELEBAMASK),
    "merged": (partial(write_helen_merged, first_is_left=False), "helen", HELEN),
    "list": (partial(write_list, ids=TO_CELEBAMASK), "list", CELEBAMASK),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_data_set_is_relabelled_into_a_folder_of_its_own_and_trained_on(layout, tiny, tmp_path, capsys):
    write, dataset, labels = LAYOUTS[layout]
    root, out, cache = tmp_path / "data", tmp_path / "new", tmp_path / "cache"
    write(root, FACES)
    before = contents(root)
    line = f"--dataset {dataset} --data {root} --cache {cache} --device cpu --rare 0.02 --out {out}"
    more = " --labels celebamask" if layout == "list" else ""
    words = f"{line} --checkpoint {tiny(labels)}{more}".split()
    written = []
    for _ in range(2):  # the second call writes no map again
        assert script.main(words) == 0
        written.append({path: path.stat().st_mtime_ns for path in out.glob("*.png")})
    assert written[0] == written[1]
    assert "| nose |" in capsys.readouterr().out
    assert contents(root) == before
    with refuses("threshold 0.95, not 0.9"):
        script.main([*words, "--threshold", "0.9"])

    data = FaceData(dataset, root, cache=cache, label_set=labels if layout == "list" else None)
    own = replace(data, train_labels=out)
    old, new = (open_faces(faces, "train", labels) for faces in (data, own))
    record = json.loads((out / "relabel.json").read_text())
    nose, counts = labels.names.index("nose"), np.zeros((2, len(labels)), np.int64)
    rare = [labels.names.index(name) for name in record["kept"]]
    assert sorted(old.names) == sorted(new.names) == sorted(path.stem for path in out.glob("*.png"))
    for i, name in enumerate(old.names):
        wanted = np.where(np.isin(old.ids(i), rare), old.ids(i), nose)
        assert np.array_equal(new.ids(i), wanted)
        assert np.array_equal(np.array(Image.open(out / f"{name}.png")), wanted)
        assert np.array_equal(new.photo(i), old.photo(i))
        counts += [np.bincount(maps.ids(i).ravel(), minlength=len(labels)) for maps in (old, new)]
    shares = counts[0] / counts[0].sum()
    assert set(rare) == set(np.flatnonzero(shares < 0.02))
    assert {0, labels.names.index("skin")}.isdisjoint(rare)
    assert any(counts[0][rare])
    assert list(record["pixels before and after"].values()) == counts.T.tolist()
    assert np.array_equal(open_faces(own, "val", labels).ids(0), open_faces(data, "val", labels).ids(0))


def test_a_folder_of_labels_that_does_not_fit_is_refused_in_one_line(tmp_path):
    write_challenge(tmp_path / "data", FACES)
    folder, whole = tmp_path / "new", np.zeros((64, 64), np.uint8)
    data = FaceData("celebamask", tmp_path / "data", cache=tmp_path / "cache", train_labels=folder)
    with refuses("is not a folder"):
        open_faces(data, "train", CELEBAMASK)
    folder.mkdir()
    with refuses("lacks 3 (0.png, 1.png, 2.png)"):
        open_faces(data, "train", CELEBAMASK)
    for name in "012":
        Image.fromarray(whole).save(folder / f"{name}.png")
    (folder / "relabel.json").write_text('{"labels": "helen"}')
    with refuses("holds ids of helen, the data set those"):
        open_faces(data, "train", CELEBAMASK)
    (folder / "relabel.json").unlink()
    for ids, line in ((whole + 19, "new/1.png: 1 (19)"), (whole[:32], "64×32")):
        Image.fromarray(ids).save(folder / "1.png")
        with refuses(line):
            open_faces(data, "train", CELEBAMASK)


def _train(folder: Path, *more: str) -> int:
    data = ["--face-size", "48", "--max-images", "4", "--cache", str(folder / "cache"), "--device", "cpu"]
    how = ["--recipe", "seed", "--input-size", "48", "--batch-size", "2", "--epochs", "3", "--self-distill", "1"]
    return train_deeplab.main([*data, *how, *more])


RULE = ("--threshold", "0.05", "--rare", "0.001")


@pytest.fixture(scope="module", autouse=True)
def dice_from_the_second_epoch() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_deeplab, "DICE_FROM", 1)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    _train(folder, *RULE, "--run-dir", str(folder / "run"))
    return folder / "run"


@pytest.mark.parametrize(("place", "maps"), [("relabelling", 1), ("later", 4)])
def test_one_command_trains_relabels_and_goes_on_however_it_is_interrupted(whole, tmp_path, place, maps, monkeypatch):
    parts, written = tmp_path / "parts", []
    assert json.loads((whole / "labels" / "relabel.json").read_text())["changed"] > 0
    assert json.loads((whole / "config.json").read_text())["self_distillation"]["after"] == 1

    def write_one(*args: Any, write: Callable = relabel._write, **more: Any) -> None:
        written.append(args)
        if len(written) > 1:
            raise KeyboardInterrupt
        write(*args, **more)

    def train() -> int:
        return _train(tmp_path, *RULE, "--run-dir", str(parts))

    if place == "relabelling":
        with monkeypatch.context() as patch:
            patch.setattr(relabel, "_write", write_one)
            with pytest.raises(KeyboardInterrupt):
                train()
    else:
        fit_until("last.pt", train)
    assert len(list((parts / "labels").glob("*.png"))) == maps
    with refuses("self_distillation"):
        _train(tmp_path, "--threshold", "0.5", "--run-dir", str(parts), "--resume")
    _train(tmp_path, *RULE, "--run-dir", str(parts), "--resume")
    one, two = ({p.name: p.read_bytes() for p in (run / "labels").glob("*.png")} for run in (whole, parts))
    assert one == two
    assert len(one) == 4
    assert_same_run(parts, whole)


def test_the_new_labels_are_what_is_trained_on(tmp_path, monkeypatch):
    seen: list[int] = []
    loss = train_deeplab.seed_loss

    def look(logits: torch.Tensor, targets: torch.Tensor, epoch: int) -> torch.Tensor:
        seen.append(int(targets.max()))
        return loss(logits, targets, epoch)

    def all_skin(*args: object) -> torch.Tensor:
        return torch.ones_like(args[1])  # type: ignore[call-overload]

    monkeypatch.setattr(train_deeplab, "seed_loss", look)
    monkeypatch.setattr(relabel, "merge", all_skin)
    _train(tmp_path, "--run-dir", str(tmp_path / "run"))
    assert seen == [10, 10, 1, 1, 1, 1]  # hair, of the data set; then skin alone
