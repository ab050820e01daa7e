"""The demo at a tiny size: it says what it does, trains, scores, and ends with its pictures."""

from pathlib import Path

from PIL import Image

import reproduce
from tools import demo


def test_the_demo_names_its_stages_and_ends_with_the_pictures_that_it_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SIZES", {"coarse_size": 32, "crop_size": 17})
    monkeypatch.setattr(demo, "STAGES", {name: (what, 1, lr) for name, (what, _, lr) in demo.STAGES.items()})
    for name, value in {"BATCH_SIZE": 2, "FACES": 4, "FACE_SIZE": 64, "SHOWN": 4}.items():
        monkeypatch.setattr(demo, name, value)
    assert demo.main(["--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert demo.DURATION in lines[1]
    starts = [line for line in lines if line.startswith("Stage ")]
    assert [line.partition(":")[0] for line in starts] == [f"Stage {number} of 4" for number in (1, 2, 3, 4)]
    assert list(demo.STAGES) == list(reproduce.STAGES)
    assert (tmp_path / "table_test.md").read_text().count("| STN-iCNN |") == 2
    pictures = [Path(line.partition(":")[0].strip()) for line in lines[lines.index("Pictures:") + 1 :]]
    assert [path.name for path in pictures] == ["summary.png", "portrait_overlay.jpg"]
    for path in pictures:
        assert min(Image.open(path).size) > 200
