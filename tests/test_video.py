"""Videos: faces followed over the frames, frames without a face, files that are no videos, interruptions."""

import json
import struct
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage.data
import torch

import predict
from data.images import read_labels
from faces import video
from faces.detect import Detection, Detector
from faces.scene import SceneParser
from models.loading import SHIPPED_WEIGHTS, load_for_inference
from utils.errors import InputError
from utils.runtime import run_main

SIZE = (320, 240)


@pytest.fixture(scope="module")
def scenes() -> SceneParser:
    return SceneParser(load_for_inference([SHIPPED_WEIGHTS], torch.device("cpu")), Detector())


def moving_face(count: int) -> list[np.ndarray]:
    """A woman who moves to the right and turns clockwise, RGB."""
    frames = []
    for number in range(count):
        turned_23 = cv2.getRotationMatrix2D((223, 118), -3 * number, 1)
        turned_23[:, 2] += (40 + 6 * number - 160, 0)
        frames.append(cv2.warpAffine(skimage.data.astronaut(), turned_23, SIZE, borderMode=cv2.BORDER_REPLICATE))
    return frames


def save_video(path: Path, frames: list[np.ndarray], times: list[float] | None = None, sound: str = "") -> Path:
    """Times: in seconds, by default 12.5 frames a second. sound: the codec of a second of 440 Hz."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=Fraction(25, 2), options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv444p"  # takes odd sides too
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if sound:
            speaker = output.add_stream(sound, rate=48_000, layout="mono")
            wave = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
            tone = av.AudioFrame.from_ndarray((wave * 9000).astype(np.int16)[None], "s16", "mono")
            tone.rate, tone.pts = 48_000, 0
            output.mux([*speaker.encode(tone), *speaker.encode(None)])
        for k, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts, frame.time_base = round(1000 * (times[k] if times else k / 12.5)), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def open_video(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """The times and the frames."""
    with ExitStack() as stack:
        frames = list(video.read_frames(stack.enter_context(video.open_video(path, stack))))
    return [frame.time for frame in frames], [frame.image_HW3 for frame in frames]


def test_a_video_gives_a_video_with_labels_and_a_label_map_for_each_frame(tmp_path, capsys):
    frames = [*moving_face(5), *[np.full((240, 320, 3), 70, np.uint8)] * 2]
    save_video(tmp_path / "clip.mp4", frames)
    out = ["--out", str(tmp_path / "out"), "--device", "cpu", "--amp", "off"]
    assert predict.main([str(tmp_path / "clip.mp4"), "--frame-labels", *out]) == 0
    assert "7 frames, 5 with faces" in capsys.readouterr().out
    times, shown = open_video(tmp_path / "out" / "clip_overlay.mp4")
    assert times == pytest.approx(np.arange(7) / 12.5)
    found = json.loads((tmp_path / "out" / "clip_frames.json").read_text())
    assert [(frame["time"], len(frame["faces"])) for frame in found["frames"]] == [
        *((time, 1) for time in times[:5]),
        *((time, 0) for time in times[5:]),
    ]
    maps = [read_labels(tmp_path / "out" / "clip_labels" / f"{number:06d}.png") for number in range(1, 8)]
    centres = [np.argwhere(labels == 5).mean(0)[1] for labels in maps[:5]]
    assert np.diff(centres) == pytest.approx(6, abs=2.5)  # the nose moves as the face does
    assert not maps[5].any()
    assert not maps[6].any()
    assert np.abs(shown[6].astype(int) - 70).max() < 12  # goes through as it is
    assert predict.main([str(tmp_path / "clip.mp4"), *out]) == 0
    assert "1 skipped" in capsys.readouterr().out


def shown_turned(path: Path, quarters: int) -> None:
    """Let players turn an mp4 clockwise by quarters of a circle, as telephones do: its track header's matrix."""
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    matrix_9 = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # behind its name, version, flags, times, number, length, layer and volume
    assert content[start : start + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = matrix_9
    path.write_bytes(content)


def test_a_video_that_players_turn_is_parsed_upright(tmp_path):
    frames = moving_face(2)
    save_video(tmp_path / "0.mp4", frames)
    for quarters in (1, 2, 3):
        path = save_video(tmp_path / f"{quarters}.mp4", [np.rot90(frame, quarters) for frame in frames])
        shown_turned(path, quarters)
        _, shown = open_video(path)
        assert np.abs(np.array(shown, int) - frames).mean() < 8  # of 255: what the codec loses
    out = ["--out", str(tmp_path / "out"), "--device", "cpu", "--amp", "off"]
    assert predict.main([str(tmp_path / "0.mp4"), str(tmp_path / "1.mp4"), "--frame-labels", *out]) == 0
    assert {frame.shape for frame in open_video(tmp_path / "out" / "1_overlay.mp4")[1]} == {(240, 320, 3)}
    one, other = (read_labels(tmp_path / "out" / f"{name}_labels" / "000002.png") for name in "01")
    assert set(np.unique(other)) >= {1, 2, 3, 4, 5}
    assert (one != other).mean() < 0.01


class FakeDetector:
    """Finds one face at places that are given, frame by frame."""

    def __init__(self, places: list[tuple[float, float]]) -> None:
        self.places, self.searched = places, 0

    def find(self, photo):
        self.searched += 1
        return self.follow(photo, None, self.searched) if self.places else []

    def follow(self, photo, face, searched=0):
        x, y = self.places.pop(0)
        points = np.array([(x - 20, y), (x + 20, y), (x, y + 20), (x - 15, y + 40), (x + 15, y + 40)])
        found = Detection((x - 50, y - 50, 100, 100), points, 0.9)
        return [found] if searched else found


def test_trembling_is_smoothed_and_movement_is_followed_at_once():
    trembling = [(100 + (-1) ** k, 100.0) for k in range(11)]
    follower = video.Follower(SceneParser.__new__(SceneParser))
    follower.scenes.detector, follower.scenes.which = FakeDetector([*trembling, (140.0, 100.0), (180.0, 100.0)]), "all"
    x = [follower.next(np.zeros((9, 9, 3), np.uint8))[0].points_52[2, 0] for _ in range(13)]
    assert np.abs(np.diff(x[2:11])).max() < 0.5  # of 2 pixels to and fro
    assert x[11:] == [140.0, 180.0]
    assert follower.scenes.detector.searched == 2  # the first frame and the thirteenth


def test_files_that_are_no_videos_are_one_line(scenes, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    save_video(tmp_path / "short.mp4", moving_face(2))
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "short.mp4").read_bytes()[:300])
    for name, line in (("text", "is no MP4, MOV"), ("empty", "is no MP4, MOV"), ("cut", "that OpenCV can read")):
        with pytest.raises(InputError, match=rf"{name}\.mp4 .*{line}"):
            video.parse_video(scenes, tmp_path / f"{name}.mp4", tmp_path / "out.mp4")
    with pytest.raises(InputError, match="no such video"):
        video.parse_video(scenes, tmp_path / "none.mp4", tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.mp4", "empty.mp4", "short.mp4", "text.mp4"]


def test_bad_videos_are_listed_and_the_rest_goes_on(tmp_path, capsys):
    (tmp_path / "bad.mp4").write_text("no video")
    save_video(tmp_path / "good.mp4", moving_face(1))
    argv = [str(tmp_path / "bad.mp4"), str(tmp_path / "good.mp4"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert predict.main(argv) == 1
    assert capsys.readouterr().err.count("failed: ") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_overlay.mp4"]
    with pytest.raises(InputError, match=r"--faces none: the faces of .* have to be found"):
        predict.main([*argv, "--faces", "none"])


def test_a_video_is_never_replaced_by_its_result(tmp_path):
    save_video(tmp_path / "a_overlay.mp4", moving_face(1))
    save_video(tmp_path / "a.mp4", moving_face(1))
    with pytest.raises(InputError, match="its results would replace it"):
        predict.main([str(tmp_path), "--out", str(tmp_path), "--device", "cpu", "--overwrite"])


def test_ctrl_c_leaves_a_video_that_plays(tmp_path, monkeypatch, capsys):
    save_video(tmp_path / "clip.mp4", moving_face(5))
    parse, seen = video.parse_frames, []

    def interrupted(scenes, frames):
        for item in parse(scenes, frames):
            if len(seen) == 3:
                raise KeyboardInterrupt
            seen.append(item)
            yield item

    monkeypatch.setattr(video, "parse_frames", interrupted)
    argv = [str(tmp_path / "clip.mp4"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert run_main(lambda: predict.main(argv), predict.INTERRUPTED) == 130
    told = capsys.readouterr().err
    assert "clip_overlay.mp4 ends after 3 frames; parse it again for all of them" in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip_overlay.mp4"]
    assert len(open_video(tmp_path / "out" / "clip_overlay.mp4")[1]) == 3
