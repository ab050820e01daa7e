"""Videos: faces followed over the frames, frames without a face, files that are no videos, interruptions."""

import json
import os
import re
import struct
import time
from contextlib import ExitStack
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import skimage.data

import predict
from data.images import read_labels
from data.labels import NINE
from faces import camera, video
from faces.detect import Detection
from faces.scene import SceneParser, compose_scene
from tests import damage
from tests.fixtures import contents, names
from utils.runtime import run_main

pytestmark = pytest.mark.usefixtures("loading_once")
SIZE = (320, 240)


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
        stream = output.add_stream("libx264", rate=Fraction(25, 2), options={"crf": "10", "bf": "0"})
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


def call(*words: object) -> int:
    argv = [str(word) for word in (*words, "--device", "cpu", "--amp", "off")]
    return run_main(lambda: predict.main(argv), predict.INTERRUPTED)


def test_a_video_gives_a_video_with_labels_and_a_label_map_for_each_frame(tmp_path, capsys):
    frames = [*moving_face(5), *[np.full((240, 320, 3), 70, np.uint8)] * 2]
    clip = save_video(tmp_path / "clip.mp4", frames)
    assert call(clip, "--frame-labels", "--out", tmp_path / "out") == 0
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
    assert call(clip, "--out", tmp_path / "out") == 0
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


def test_a_video_that_players_turn_is_read_upright(tmp_path):
    frames = moving_face(2)
    for quarters in (1, 2, 3):
        path = save_video(tmp_path / f"{quarters}.mp4", [np.rot90(frame, quarters) for frame in frames])
        shown_turned(path, quarters)
        _, shown = open_video(path)
        assert np.abs(np.array(shown, int) - frames).mean() < 8  # of 255: what the codec loses


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


def test_a_camera_shows_its_newest_frame_and_drops_the_others(tmp_path, capsys, monkeypatch):
    clip, out = save_video(tmp_path / "clip.mp4", moving_face(10)), ["--out", tmp_path / "out"]
    device = camera.Camera(str(clip))
    frames = device.frames()
    first = next(frames)
    while device.seen < 5:
        time.sleep(0.01)
    assert next(frames).time > first.time
    assert 2 + len([*frames]) < device.seen == 10
    assert call("--camera", clip, *out) == 0
    counts = re.fullmatch(
        r".*camera_overlay.mp4: (\d+) frames, \1 with faces .*, (\d+) dropped\n", capsys.readouterr().out
    )
    assert counts
    assert int(counts[1]) + int(counts[2]) == 10
    assert len(open_video(tmp_path / "out" / "camera_overlay.mp4")[0]) == int(counts[1])
    shown: list[np.ndarray] = []
    monkeypatch.setattr(camera.cv2, "imshow", lambda title, image: shown.append(image))
    monkeypatch.setattr(camera.cv2, "waitKey", lambda pause: ord("q") if len(shown) == 2 else -1)
    assert call("--camera", clip) == 0
    assert len(shown) == 2
    assert call("--camera", clip, *out) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.fixture
def faceless(monkeypatch) -> None:
    """No frame shows a face, which takes no time to find."""

    def parse_frames(scenes, frames):
        for frame in frames:
            size = frame.image_HW3.shape[:2]
            yield frame, compose_scene(NINE, size, [], [], [])

    monkeypatch.setattr(video, "parse_frames", parse_frames)


def test_ctrl_c_leaves_the_first_frames_beside_where_nothing_older_is(tmp_path, monkeypatch, faceless, capsys):
    save_video(tmp_path / "clip.mp4", moving_face(5))
    parse, out = video.parse_frames, tmp_path / "out"

    def interrupted(scenes, frames):
        yield from islice(parse(scenes, frames), 3)
        raise KeyboardInterrupt

    for overwrite in ([], ["--overwrite"]):  # the second time, the older whole one stays
        before = contents(out)
        with monkeypatch.context() as patch:
            patch.setattr(video, "parse_frames", interrupted)
            assert call(tmp_path / "clip.mp4", "--out", out, *overwrite) == 130
        if not overwrite:
            assert "clip_overlay_part.mp4 holds the first 3 frames" in capsys.readouterr().err
            assert len(open_video(out / "clip_overlay_part.mp4")[1]) == 3
            assert call(tmp_path / "clip.mp4", "--out", out) == 0  # anew
            assert names(out) == ["clip_frames.json", "clip_overlay.mp4"]
            assert len(open_video(out / "clip_overlay.mp4")[1]) == 5
        else:
            assert contents(out) == before


@pytest.mark.parametrize(
    ("name", "sound", "size", "kept"),
    [
        ("12-30:05.mp4", "aac", (241, 321), "aac"),
        ("a,b.mkv", "libopus", (64, 48), "opus"),
        (os.fsdecode(b"caf\xe9.mov"), "pcm_s16le", (16, 15), "aac"),
        ("tiny.mkv", "", (1, 1), None),
    ],
)
def test_times_sound_and_every_row_are_kept_under_any_name(tmp_path, faceless, name, sound, size, kept):
    times, frames = [0.0, 0.04, 0.5, 2.9, 3.97], [np.full((*size, 3), 40 * k, np.uint8) for k in range(5)]
    for image in frames:
        image[-1] = 250  # a last row that must not get lost
    os.replace(save_video(tmp_path / f"made{Path(name).suffix}", frames, times, sound), tmp_path / name)
    assert call(tmp_path / name, "--out", tmp_path / "out") == 0
    target = tmp_path / "out" / f"{Path(name).stem}_overlay.mp4"
    found, shown = open_video(target)
    assert found == pytest.approx(times, abs=0.01)  # Opus begins a little before the pictures
    height, width = size
    assert np.abs(np.array(shown, int)[:, :height, :width] - frames).max() < 25
    assert shown[0].shape == (height + height % 2, width + width % 2, 3)
    with open(target, "rb") as file, av.open(file) as container:
        assert container.duration / 1e6 == pytest.approx(4.05, abs=0.02)  # the last frame lasts .08 s
        assert container.streams.video[0].codec_context.name == "h264"
        assert [stream.codec_context.name for stream in container.streams.audio] == [kept] * (kept is not None)
        if kept:
            rate = container.streams.audio[0].rate
            wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
            assert np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave) == pytest.approx(440, abs=2)
            assert len(wave) / rate == pytest.approx(1, abs=0.06)


def test_a_new_run_removes_the_maps_of_a_longer_one_and_a_failed_one_nothing(tmp_path, faceless, capsys):
    out = tmp_path / "out"
    noise = list(np.random.default_rng(0).integers(0, 256, (6, 60, 80, 3), np.uint8))
    for frames in (noise, noise[:4]):
        save_video(tmp_path / "clip.mp4", frames)
        assert call(tmp_path / "clip.mp4", "--out", out, "--frame-labels", "--overwrite") == 0
        assert len(list((out / "clip_labels").iterdir())) == len(frames)
    before = contents(out)
    with damage.little_room(4000):
        assert call(tmp_path / "clip.mp4", "--out", out, "--frame-labels", "--overwrite") == 2
    assert "clip.mp4: its results could not be written (File too large)" in capsys.readouterr().err
    assert contents(out) == before


def test_photos_and_videos_of_one_name_each_get_their_results(tmp_path, faceless):
    save_video(tmp_path / "a.mp4", moving_face(1))
    save_video(tmp_path / "a.mov", moving_face(1))
    for name in ("a.png", "p.png"):
        cv2.imwrite(str(tmp_path / name), moving_face(1)[0])
    assert call(tmp_path, "--out", tmp_path / "out", "--no-overlay") == 0
    expected = ["a.mov_frames.json", "a.mp4_frames.json", "a.png", "a_faces.json", "p.png", "p_faces.json"]
    assert names(tmp_path / "out") == expected
