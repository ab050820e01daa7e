"""Videos: the faces of every frame, followed and smoothed over time, drawn into a video of the same size and times."""

import errno
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

import av
import numpy as np
from tqdm import tqdm

from faces.detect import Detection
from faces.scene import Scene, SceneParser, drawn
from scoring.pictures import encode_labels
from utils.errors import InputError
from utils.files import open_regular

KINDS = re.compile(
    rb"(?P<mov>.{4}(?:ftyp|moov|mdat|wide|free|skip))|(?P<avi>RIFF....AVI )|(?P<matroska>\x1aE\xdf\xa3)", re.S
)
CODEC = "libx264" if "libx264" in av.codecs_available else "mpeg4"
COPIED = ("aac", "mp3", "opus")  # sound that browsers play in an mp4; any other becomes AAC
TICK = Fraction(1, 60_000)  # of a second: exact for the usual rates, and MPEG-4 takes no finer one than 1 / 65,535
UNKNOWN = SimpleNamespace(average_rate=None, color_primaries=2, color_trc=2, colorspace=2)  # FFmpeg's "unspecified"
SEARCH = 12  # the whole frame is searched for new faces once in so many frames; between, known ones are followed
AT_ONCE = 8  # frames that are parsed together
STILL, SLOWEST = 0.04, 0.25  # movement of the points, in sides of the face's box, and weight of new points without any


class Frame(NamedTuple):
    """image_HW3: uint8, RGB, upright. time, duration: in seconds, from the start of the video."""

    image_HW3: np.ndarray
    time: float
    duration: float


class Report(NamedTuple):
    """frames: parsed. with_faces: of them, those that show one. seconds: that it took."""

    frames: int
    with_faces: int
    seconds: float


class Follower:
    """The faces of one frame after the other, their points smoothed over time.

    Points that hardly move are averaged with those before, which takes the detector's trembling away; points that move
    by ``STILL`` or more are taken as they are, so that nothing lags behind.
    """

    def __init__(self, scenes: SceneParser) -> None:
        self.scenes, self.frame = scenes, 0
        self.faces: list[Detection] = []

    def next(self, frame_HW3: np.ndarray) -> list[Detection]:
        """The faces of the next frame, uint8 (H, W, 3), RGB, largest first."""
        found: list[Detection] | None = None
        if self.faces and self.frame % SEARCH:
            followed = [self.scenes.detector.follow(frame_HW3, face) for face in self.faces]
            found = [face for face in followed if face is not None]
        if found is None or len(found) < len(self.faces):  # a face has gone, or a new shot begins
            found = self.scenes.find(frame_HW3)
        self.frame += 1
        self.faces = [self._smoothed(face) for face in found]
        return self.faces

    def _smoothed(self, face: Detection) -> Detection:
        """The face with its points averaged with those of the same face in the frame before."""
        if not self.faces:
            return face
        side = max(face.box[2:])
        before = min(self.faces, key=lambda other: float(np.abs(other.points_52 - face.points_52).mean()))
        moved = float(np.linalg.norm(before.points_52 - face.points_52, axis=1).mean()) / side
        weight = min(1.0, max(SLOWEST, moved / STILL))
        return replace(face, points_52=before.points_52 + weight * (face.points_52 - before.points_52))


class Film:
    """An mp4 written frame by frame, with the sound of ``source``, a container that nobody else reads, or without any;
    ``stack`` closes it."""

    def __init__(self, path: Path, source: Any, stack: ExitStack) -> None:
        self.path, self.source, self.frames, self.ticks, self.heard = path, source, 0, -1, -math.inf
        self.file = stack.enter_context(open(path, "xb"))  # noqa: SIM115
        self.output = av.open(self.file, "w", format="mp4")
        stack.callback(self.close)
        like = source.streams.best("video") if source else UNKNOWN
        # without B-frames, whose order in the file makes players cut the end of a video of variable rate
        self.stream = self.output.add_stream(CODEC, rate=like.average_rate or 25, options={"crf": "20", "bf": "0"})
        self.stream.codec_context.flags |= 1 << 8  # AV_CODEC_FLAG_FRAME_DURATION: the last frame lasts as it did
        self.stream.codec_context.time_base = self.stream.time_base = TICK
        self.stream.pix_fmt, self.stream.color_range = "yuv420p", 1  # as all browsers play it
        self.stream.color_primaries, self.stream.color_trc = like.color_primaries, like.color_trc
        self.matrix = {1: 1, 5: 5, 6: 5, 9: 9}.get(like.colorspace, 2)  # FFmpeg's numbers, those it converts to; 2: any
        self.stream.colorspace = self.matrix
        self.sound = self._sound()
        self.waiting = next(self.sound, None)

    def add(self, image_HW3: np.ndarray, frame: Frame) -> None:
        """Show the image at the time of ``frame``. Odd sides, which H.264 cannot have, repeat their last pixels."""
        height, width = image_HW3.shape[:2]
        image_HW3 = np.pad(image_HW3, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        if self.frames == 0:
            self.stream.height, self.stream.width = image_HW3.shape[:2]
        picture = av.VideoFrame.from_ndarray(image_HW3)
        picture = picture.reformat(format="yuv420p", dst_colorspace=self.matrix, dst_color_range=1)
        self.ticks = max(self.ticks + 1, round(frame.time / TICK))
        picture.pts, picture.time_base, picture.duration = self.ticks, TICK, round(frame.duration / TICK)
        self.output.mux(self.stream.encode(picture))
        self.frames += 1
        self._add_sound(frame.time + frame.duration)

    def finish(self, whole: bool) -> None:
        """Write the rest, of the sound too if ``whole``, and read the file back to its last frame. Raises OSError."""
        if whole:
            self._add_sound(math.inf)
        self.output.mux(self.stream.encode(None))
        self.output.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        with open(self.path, "rb") as file, av.open(file, format="mp4") as container:
            times = [packet.pts for packet in container.demux(video=0) if packet.size]
            container.seek(times[-1], stream=container.streams.video[0])
            if len(times) < self.frames or times[-1] not in [frame.pts for frame in container.decode(video=0)]:
                raise OSError(errno.EIO, "it cannot be read back")

    def close(self) -> None:
        with suppress(OSError, av.FFmpegError):  # where it is not finished: what went wrong before is reported
            self.output.close()

    def _add_sound(self, until: float) -> None:
        while self.waiting is not None and self.waiting.dts * self.waiting.time_base < until:
            # a clock that goes back, as where files were joined, is an error in an mp4
            if self.waiting.dts > self.heard:
                self.heard = self.waiting.dts
                self.output.mux(self.waiting)
            self.waiting = next(self.sound, None)

    def _sound(self) -> Iterator[Any]:
        """The packets of the source's sound."""
        stream = self.source.streams.best("audio") if self.source else None
        if stream is None or stream.codec_context is None:
            return
        start = round(start_of(self.source) / stream.time_base)
        if stream.codec_context.codec.canonical_name in COPIED:
            copy = self.output.add_stream_from_template(stream)
            with suppress(av.error.InvalidDataError):
                for packet in self.source.demux(stream):
                    if packet.dts is not None:  # as of the end
                        packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                        yield packet
            return
        encoder = self.output.add_stream("aac", rate=48_000, layout="stereo")
        for frame in decode(self.source, stream):
            if frame.pts is not None:
                frame.pts -= start
            yield from encoder.encode(frame)
        yield from encoder.encode(None)


def parse_video(scenes: SceneParser, source: Path, outputs: dict[str, Path], windows: bool = False) -> Report:
    """Parse a video into files that get their names once all are whole.

    outputs: kind -> path, all in one folder. "video": an mp4 that shows the labels over the frames, with the sound.
    "times": JSON, of each frame its time in seconds and its faces. "frames": a folder for label maps as PNGs,
    000001.png of the first frame. windows: draw the parser's windows too. Where it is interrupted (KeyboardInterrupt),
    and no older video is there, the frames so far become ``part_of`` it before the exception goes on. Raises InputError
    for a file that is no video, OSError where nothing can be written.
    """
    started, film, interrupted, with_faces = time.monotonic(), None, None, 0
    rows: list[str] = []
    with ExitStack() as stack:
        container, beside = (open_video(source, stack) for _ in range(2))
        folder = stack.enter_context(TemporaryDirectory(prefix=".", dir=next(iter(outputs.values())).parent))
        parts = {kind: Path(folder, kind) for kind in outputs}
        if "frames" in parts:
            parts["frames"].mkdir()
        total = container.streams.best("video").frames or None
        try:
            frames = tqdm(read_frames(container), source.name, total, leave=False, unit="frame", disable=None)
            for frame, scene in parse_frames(scenes, frames):
                if "video" in parts:
                    film = film or Film(parts["video"], beside, stack)
                    film.add(drawn(frame.image_HW3, scene, windows), frame)
                faces = [face.report() for face in scene.faces]
                rows.append(json.dumps({"time": round(frame.time, 4), "faces": faces}))
                with_faces += bool(faces)
                if "frames" in parts:
                    (parts["frames"] / f"{len(rows):06d}.png").write_bytes(encode_labels(scene.labels_HW, scene.labels))
        except KeyboardInterrupt as error:
            interrupted = error
        if film is not None and film.frames:
            film.finish(whole=interrupted is None)
        if interrupted is not None:
            if film is not None and film.frames and not outputs["video"].exists():
                os.replace(parts["video"], part_of(outputs["video"]))
                tqdm.write(f"{part_of(outputs['video'])} holds the first {film.frames} frames", file=sys.stderr)
            raise interrupted
        if not rows:
            raise InputError(f"{source} has no frame that FFmpeg can read: convert it to mp4")
        if "times" in parts:
            labels = scenes.parser.labels
            head = json.dumps({"labels": labels.name, "names": labels.names})[:-1]
            parts["times"].write_text(f'{head}, "frames": [\n' + ",\n".join(rows) + "\n]}\n")
        place(parts, outputs)
    return Report(len(rows), with_faces, time.monotonic() - started)


def part_of(video: Path) -> Path:
    """What the first frames of a video are called; the next call parses it anew and removes them."""
    return video.with_name(f"{video.stem}_part.mp4")


def place(parts: dict[str, Path], outputs: dict[str, Path]) -> None:
    """Give finished files their names, and remove what is left of earlier runs."""
    for kind, path in outputs.items():
        if kind == "frames" and path.exists():
            for old in path.glob("*.png"):
                if old.stem.isdecimal():
                    old.unlink()
            for part in parts[kind].iterdir():
                os.replace(part, path / part.name)
        else:
            os.replace(parts[kind], path)
    if "video" in outputs:
        with suppress(OSError):
            part_of(outputs["video"]).unlink()


def open_video(path: Path, stack: ExitStack) -> Any:
    """A video as a container of PyAV, which ``stack`` closes. FFmpeg sees its open file alone, and takes it for nothing
    but what it is, so that no list of other files is followed. Raises InputError."""
    file = stack.enter_context(open_regular(path, "video"))
    kind = KINDS.match(file.read(12))
    file.seek(0)
    if kind is None:
        raise InputError(f"{path} is no MP4, MOV, AVI, MKV or WEBM video: convert it to mp4")
    try:
        container = stack.enter_context(av.open(file, format=kind.lastgroup, metadata_errors="replace"))
    except av.FFmpegError as error:
        raise InputError(f"{path} is no video that FFmpeg can read: convert it to mp4") from error
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise InputError(f"{path} has no pictures that FFmpeg can read: convert it to mp4")
    return container


def start_of(container: Any) -> Fraction:
    """When a video begins, in seconds of its own clock."""
    return Fraction(container.start_time or 0, av.time_base)


def decode(container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream, without what is damaged."""
    with suppress(av.error.InvalidDataError):
        for packet in container.demux(stream):
            with suppress(av.error.InvalidDataError):
                yield from packet.decode()


def read_frames(container: Any) -> Iterator[Frame]:
    """The frames of a video, all of the first one's size. One without a time follows the one before."""
    stream, first, due = container.streams.best("video"), None, 0.0
    stream.thread_type = "AUTO"
    for frame in decode(container, stream):
        first = first or frame
        seconds = due if frame.pts is None else float(frame.pts * frame.time_base - start_of(container))
        duration = float(frame.duration * frame.time_base or 1 / (stream.average_rate or 25))
        image_HW3 = frame.to_ndarray(format="rgb24", width=first.width, height=first.height)
        yield Frame(np.ascontiguousarray(np.rot90(image_HW3, first.rotation // 90)), seconds, duration)
        due = seconds + duration


def parse_frames(scenes: SceneParser, frames: Iterable[Frame]) -> Iterator[tuple[Frame, Scene]]:
    """Each frame and what it shows; ``AT_ONCE`` frames are parsed together."""
    follower = Follower(scenes)
    found = ((frame, follower.next(frame.image_HW3)) for frame in frames)
    while group := list(islice(found, AT_ONCE)):
        scenes_found = scenes.parse_found([frame.image_HW3 for frame, _ in group], [faces for _, faces in group])
        yield from zip([frame for frame, _ in group], scenes_found, strict=True)
