"""``python -m tools.check`` finds everything that is wrong, says where, and leaves good data alone."""

import cv2
import numpy as np
import pytest
from PIL import Image

from data.datasets.synthetic import draw_face
from data.labels import HELEN
from faces.detect import Detection
from tests import fixtures
from tools import check, oddities
from tools.check import main
from utils.errors import InputError

SIZE = 64
pytestmark = pytest.mark.usefixtures("loading_once")
WHOLE = (31, 10, 12, 17, 18, 19, 22, 25, 29, 30, 7, 33, 37, 40, 41)  # show all parts in their usual places


def draw_faces(train: int = 3, val: int = 2, test: int = 1) -> fixtures.Faces:
    """``fixtures.draw_faces`` with a drawn face of its own under each name, in place of blocks."""
    blocks = fixtures.draw_faces(train, val, test)
    return {
        split: [(name, *draw_face(9, WHOLE[int(name)], SIZE)) for name, _, _ in faces]
        for split, faces in blocks.items()
    }


@pytest.fixture
def untrained(weights, monkeypatch):
    """Weights that are small and see nothing, where label maps are not compared with what a parser sees."""
    monkeypatch.setattr(check, "SHIPPED_WEIGHTS", weights)


@pytest.mark.parametrize("layout", ["helen", "list --labels helen"])
def test_sound_data_passes_and_gets_a_contact_sheet(layout, tmp_path, capsys):
    root, sheet = tmp_path / "data", tmp_path / "new" / "sheet.png"
    (fixtures.write_helen if layout == "helen" else fixtures.write_list)(root, draw_faces())
    assert main(f"--dataset {layout} --data {root} --out {sheet}".split()) == 0
    printed = capsys.readouterr().out
    assert "no problems in 6 faces" in printed
    assert "64×64: 3" in printed
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[2] == 3
    assert pixels.std() > 10


def test_synthetic_faces_pass_and_few_of_many_are_checked_where_that_is_asked_for(capsys):
    assert main(["--dataset", "synthetic", "--split", "val", "--max-images", "3"]) == 0
    assert "3 checked" in capsys.readouterr().out


@pytest.mark.usefixtures("untrained")
def test_every_problem_is_listed_not_just_the_first(tmp_path, capsys):
    faces = draw_faces(train=12)
    fixtures.write_challenge(tmp_path, faces)
    photos, masks = tmp_path / "train" / "train_image", tmp_path / "train" / "train_mask"
    (photos / "0.jpg").unlink()
    for mask in (masks / "1.png", *(tmp_path / "test" / "test_mask").iterdir()):
        mask.unlink()
    Image.fromarray(faces["train"][2][1]).save(masks / "2.png")
    Image.fromarray(np.full((64, 64), 19, np.uint8)).save(masks / "3.png")
    Image.new("RGB", (64, 80)).save(photos / "4.jpg")
    (photos / "5.jpg").write_bytes((photos / "5.jpg").read_bytes()[:400])
    (masks / "6.png").write_bytes((masks / "6.png").read_bytes()[:60])
    (photos / "7.jpg").write_text("no photo")
    (masks / "7.png").write_text("no mask")
    swapped = np.array(HELEN.mirror)[faces["train"][8][2]]
    fixtures.save_palette(masks / "8.png", fixtures.TO_CELEBAMASK[swapped])
    sheet = tmp_path / "sheet.jpg"
    assert main(["--dataset", "celebamask", "--data", str(tmp_path), "--out", str(sheet)]) == 1
    problems = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    expected = (
        "no masks for split test",
        f"masks without photo in split train: 1 (0) in {masks}",
        f"photos without mask in split train: 1 (1) in {photos}",
        f"mask saved as colours: {masks / '2.png'}",
        f"unknown ids in mask {masks / '3.png'}: 1 (19)",
        f"sizes differ: photo {photos / '4.jpg'} is 64×80",
        f"cannot read image {photos / '5.jpg'}",
        f"cannot read image {masks / '6.png'}",
        f"cannot read image {photos / '7.jpg'}",
        f"cannot read image {masks / '7.png'}",
        "sides swapped: brow1 lies right of brow2 in split train: 1 (8)",
        "sides swapped: eye1 lies right of eye2 in split train: 1 (8)",
        "photos in which no face is found in split train: 1 (4)",
    )
    for words in expected:
        assert sum(words in line for line in problems) == 1, words
    assert len(problems) == len(expected), problems
    assert sheet.exists()


def change(faces: fixtures.Faces, values: dict[int, int]) -> None:
    for number, value in values.items():
        faces["train"][number][2][:] = value


def without_noses(faces: fixtures.Faces) -> None:
    for number, (_, _, labels) in enumerate(faces["train"]):
        labels[labels == 6] = 1
        labels[(labels == 8) & (number < 1)] = 1


def strange(faces: fixtures.Faces) -> None:
    """An eye where an ear may be, and a photo without a face."""
    labels = faces["train"][4][2]
    labels[labels == 4] = 1
    labels[58:62, 2:8] = 4
    faces["train"][6] = ("6", np.full((SIZE, SIZE, 3), 128, np.uint8), faces["train"][6][2])


def nearly_the_same(faces: fixtures.Faces) -> None:
    photo = faces["train"][1][1]
    brighter = np.clip(1.1 * photo + 6, 0, 255).astype(np.uint8)
    faces["test"][0] = ("5", brighter, faces["train"][1][2])


ODD = {  # what is odd, how many faces each split has, the problems
    "no face has a nose": (without_noses, (10, 0, 0), ("no face of split train has part nose",)),
    "whole masks": (
        lambda faces: change(faces, {0: 0, 1: 10, 2: 6}),
        (3, 0, 0),
        ("empty mask {masks}/0.png", "hair fills 100% of the photo in mask {masks}/1.png", "nose fills 100% of the"),
    ),
    "strange places": (
        strange,
        (10, 0, 0),
        (
            "parts far from where they usually lie in split train: 1 (4 eye1)",
            "photos in which no face is found in split train: 1 (6)",
        ),
    ),
    "copies": (nearly_the_same, (3, 2, 1), ("nearly the same photo in the splits train and test: 1 (1 and 5)",)),
}


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("case", ODD)
def test_each_oddity_is_a_problem_or_a_note_and_nothing_else_is(case, tmp_path, capsys, monkeypatch):
    make, counts, lines = ODD[case]
    faces = draw_faces(*counts)
    make(faces)
    fixtures.write_challenge(tmp_path, faces)
    argv = ["--dataset", "celebamask", "--data", str(tmp_path), *([] if counts[2] else ["--split", "train"])]
    assert main(argv) == 1
    text = capsys.readouterr().out
    problems = [line for line in text.splitlines() if line.startswith("problem: ")]
    assert len(problems) == len(lines), problems
    assert (["mouth", "4", "60.0%"] in [line.split() for line in text.splitlines()]) == (make is without_noses)
    for line in lines:
        assert any(line.format(masks=tmp_path / "train" / "train_mask") in words for words in problems), line
    if case == "strange places":
        monkeypatch.setattr(check, "FEW", 0.2)
        assert main(argv) == 0
        again = capsys.readouterr().out
        assert all(f"note: {line}" in again for line in lines)


@pytest.mark.usefixtures("untrained")
def test_a_file_that_shows_nothing_of_its_part_is_a_problem(tmp_path, capsys):
    fixtures.write_celebamask_official(tmp_path, draw_faces(val=0, test=0), mapping=False)
    nose = tmp_path / "CelebAMask-HQ-mask-anno" / "0" / "00001_nose.png"
    Image.new("L", (SIZE, SIZE)).save(nose)
    assert main(["--dataset", "celebamask", "--data", str(tmp_path), "--split", "train"]) == 1
    printed = capsys.readouterr().out
    assert f"problem: empty mask {nose}" in printed
    assert printed.rstrip().endswith("1 problem in 3 faces")


def test_warped_copies_are_found_by_their_faces() -> None:
    turned = cv2.getRotationMatrix2D((64, 64), 7, 0.9) + [[0, 0, 5], [0, 0, -4]]
    faces = [draw_face(9, number, 128) for number in WHOLE[3:11]]
    squares: tuple[list, list] = ([], [])
    for photo, ids in faces:
        places = 128 * oddities.part_places(ids, HELEN)[[2, 3, 4, 5, 5]] + np.array([[0, 0]] * 3 + [[-9, 0], [9, 0]])
        for k, (seen, points) in enumerate(
            ((photo, places), (cv2.warpAffine(photo, turned, (128, 128)), places @ turned[:, :2].T + turned[:, 2]))
        ):
            squares[k].append(oddities.face_square(seen, Detection((0, 0, 1, 1), points + 1.5 * k, 0.9)))
    assert oddities.copies(*squares) == [(k, k) for k in range(len(faces))]


def test_label_maps_of_another_photo_and_shifted_ones_are_found(tmp_path, capsys):
    photos, maps = (list(each) for each in zip(*(draw_face(9, number, 128) for number in WHOLE[:8]), strict=True))
    sheet = tmp_path / "sheet.png"
    argv = ["--dataset", "celebamask", "--data", str(tmp_path), "--split", "train", "--out", str(sheet)]

    def checked(*more: str) -> str:
        train = [(str(k), *face) for k, face in enumerate(zip(photos, maps, strict=True))]
        fixtures.write_challenge(tmp_path, {"train": train, "val": [], "test": []})
        assert main([*argv, *more]) == (1 if more else 0)
        return capsys.readouterr().out

    maps.append(maps.pop(0))  # all of them are the next photo's
    assert "note: label maps agree little with the shipped weights' (F1 0." in checked()
    maps.insert(0, maps.pop())
    maps[0], maps[2], maps[6] = maps[2], maps[0], np.roll(maps[6], 20, 1)
    with pytest.raises(InputError, match="add --overwrite"):
        main(argv)
    printed = checked("--overwrite")
    assert "in split train: 3 (0 looks like 2's, 2 looks like 0's, 6)" in printed
    assert printed.rstrip().endswith("1 problem in 8 faces")
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
