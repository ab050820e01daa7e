"""Videos: the faces of every frame, followed and smoothed over time, drawn into a video of the same size and times."""

import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import av
import numpy as np
from tqdm import tqdm

from faces.detect import Detection
from faces.scene import Scene, SceneParser
from scoring.pictures import draw_outlines, encode_labels, overlay
from utils.errors import InputError
from utils.files import open_regular

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
CODEC = next(
    name for name in ("libx264", "libopenh264", "mpeg4") if name in av.codecs_available
)  # H.264 or the next best
COPIED = ("aac", "mp3", "opus")  # sound that browsers play in an mp4; any other becomes AAC
TICKS = 60_000  # of the result's clock in a second: exact for the usual rates, and MPEG-4 takes at most 65,535
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
    """An mp4 that is written frame by frame, with the sound of the video ``source``, which is open in a container of
    its own. ``finish`` it, then ``close``. Raises OSError, FFmpegError."""

    def __init__(self, path: Path, source: Any) -> None:
        self.path, self.frames, self.ticks, self.source = path, 0, -1, source
        self.file = open(path, "xb")  # noqa: SIM115
        self.output = av.open(self.file, "w", format="mp4")
        like = source.streams.best("video")
        self.stream = self.output.add_stream(CODEC, rate=like.average_rate or 25, options={"crf": "20"})
        self.stream.pix_fmt, self.stream.color_range = "yuv420p", 1
        self.stream.color_primaries, self.stream.color_trc = like.color_primaries, like.color_trc
        self.matrix = {1: 1, 5: 5, 6: 5, 9: 9}.get(like.colorspace)  # FFmpeg's numbers; None: whatever is the default
        self.stream.colorspace = self.matrix or 2
        self.stream.codec_context.time_base = self.stream.time_base = Fraction(1, TICKS)
        self.sound = self._sound()
        self.next_sound = next(self.sound, None)

    def add(self, image_HW3: np.ndarray, frame: Frame) -> None:
        """image_HW3: shown at the time of ``frame``. H.264 takes even sides: odd ones repeat their last pixels."""
        height, width = image_HW3.shape[:2]
        picture_HW3 = np.pad(image_HW3, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        if self.frames == 0:
            self.stream.height, self.stream.width = picture_HW3.shape[:2]
        shown = av.VideoFrame.from_ndarray(picture_HW3).reformat(
            format="yuv420p", dst_colorspace=self.matrix, dst_color_range=1
        )
        self.ticks = max(self.ticks + 1, round(frame.time * TICKS))
        shown.pts, shown.time_base, shown.duration = self.ticks, Fraction(1, TICKS), round(frame.duration * TICKS)
        self._add_sound(frame.time + frame.duration)
        self.output.mux(self.stream.encode(shown))
        self.frames += 1

    def finish(self, whole: bool) -> None:
        """Write the rest, of the sound too if ``whole``, and read the file back to its last frame."""
        self._add_sound(float("inf") if whole else 0)
        self.output.mux(self.stream.encode(None))
        self.output.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        with open(self.path, "rb") as file, av.open(file, format="mp4") as container:
            times = [packet.pts for packet in container.demux(video=0) if packet.size]
            container.seek(max(times), stream=container.streams.video[0])
            last = max(frame.pts for frame in container.decode(video=0))
        if len(times) != self.frames or last != max(times):
            raise OSError(errno.EIO, "the video cannot be read back")

    def close(self) -> None:
        with suppress(OSError, av.FFmpegError):  # where it is not finished, it is thrown away
            self.output.close()
        with suppress(OSError):
            self.file.close()

    def _add_sound(self, until: float) -> None:
        while self.next_sound is not None and float(self.next_sound.dts * self.next_sound.time_base) < until:
            self.output.mux(self.next_sound)
            self.next_sound = next(self.sound, None)

    def _sound(self) -> Iterator[Any]:
        """The packets of the source's sound, from the start of the video, for the output."""
        stream = self.source.streams.best("audio")
        if stream is None or stream.codec_context is None:
            return
        start = round(start_of(self.source) / stream.time_base)
        if stream.codec_context.name in COPIED:
            copy = self.output.add_stream_from_template(stream)
            with suppress(av.error.InvalidDataError):
                for packet in self.source.demux(stream):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copy
                        yield packet
            return
        rates = av.Codec("aac", "w").audio_rates
        encoder = self.output.add_stream("aac", rate=stream.rate if stream.rate in rates else 48_000)
        encoder.layout = "mono" if stream.channels == 1 else "stereo"
        for frame in decode(self.source, stream):
            if frame.pts is not None:
                frame.pts -= start
            yield from encoder.encode(frame)
        yield from encoder.encode(None)


def parse_video(scenes: SceneParser, source: Path, outputs: dict[str, Path], windows: bool = False) -> Report:
    """Parse a video into files that appear once all are whole.

    outputs: kind -> path, all in one folder. "video": an mp4 that shows the labels over the frames, with the sound.
    "times": JSON, for each frame its time in seconds and its faces. "frames": a folder for the frames' label maps as
    PNGs, 000001.png for the first; those of an earlier run go. windows: draw the parser's windows too. Where it is
    interrupted (KeyboardInterrupt) and no older video is there, the frames so far become ``part_of`` the video before
    the exception goes on. Raises InputError for a file that is no video, OSError where nothing can be written.
    """
    started, film, interrupted = time.monotonic(), None, None
    rows: list[str] = []
    with ExitStack() as stack:
        container, beside = (stack.enter_context(open_video(source, stack)) for _ in range(2))
        folder = stack.enter_context(TemporaryDirectory(prefix=".", dir=next(iter(outputs.values())).parent))
        parts = {kind: Path(folder, kind) for kind in outputs}
        total = container.streams.best("video").frames or None
        bar = stack.enter_context(tqdm(total=total, unit="frame", desc=source.name, disable=None, leave=False))
        with_faces = 0
        if "frames" in outputs:
            parts["frames"].mkdir()
        try:
            for frame, scene in parse_frames(scenes, read_frames(container)):
                if "video" in outputs:
                    film = film or stack.enter_context(closing(Film(parts["video"], beside)))
                    shown_HW3 = overlay(frame.image_HW3, scene.labels_HW, scene.labels)
                    for face in scene.faces if windows else ():
                        shown_HW3 = draw_outlines(shown_HW3, face.windows_P42, scene.labels)
                    film.add(shown_HW3, frame)
                faces = [face.report() for face in scene.faces]
                rows.append(json.dumps({"time": round(frame.time, 4), "faces": faces}))
                with_faces += bool(faces)
                if "frames" in outputs:
                    map_png = encode_labels(scene.labels_HW, scene.labels)
                    Path(parts["frames"], f"{len(rows):06d}.png").write_bytes(map_png)
                bar.update()
        except KeyboardInterrupt as error:
            interrupted = error
        except av.FFmpegError as error:
            raise InputError(f"{source}: its result cannot be written as a video ({error.strerror})") from error
        if not rows and interrupted is None:
            raise InputError(f"{source} has no frame that can be read: convert it to mp4")
        if film is not None:
            film.finish(whole=interrupted is None)
        if interrupted is not None:
            if film is not None and not outputs["video"].exists():
                os.replace(parts["video"], part_of(outputs["video"]))
                tqdm.write(f"{part_of(outputs['video'])} holds {film.frames} frames, all so far", file=sys.stderr)
            raise interrupted
        if "times" in outputs:
            head = json.dumps({"labels": scenes.parser.labels.name})[:-1]
            parts["times"].write_text(f'{head}, "frames": [\n' + ",\n".join(rows) + "\n]}\n")
        place(parts, outputs)
    return Report(len(rows), with_faces, time.monotonic() - started)


def part_of(video: Path) -> Path:
    """What the first frames of a video are called; the next call parses it anew and removes them."""
    return video.with_name(f"{video.stem}_part.mp4")


def place(parts: dict[str, Path], outputs: dict[str, Path]) -> None:
    """Give finished files their names, and remove what earlier runs left of a longer or interrupted one."""
    for kind, path in outputs.items():
        if kind != "frames":
            os.replace(parts[kind], path)
            continue
        path.mkdir(exist_ok=True)
        maps = {part.name for part in parts[kind].iterdir()}
        for name in maps:
            os.replace(parts[kind] / name, path / name)
        for old in path.glob("[0-9]*.png"):
            if old.stem.isdecimal() and old.name not in maps:
                old.unlink()
    if "video" in outputs:
        with suppress(OSError):
            part_of(outputs["video"]).unlink()


def open_video(path: Path, stack: ExitStack) -> Any:
    """A video, which FFmpeg reads through its open file alone, so that nothing in it can name another. Raises
    InputError."""
    file = stack.enter_context(open_regular(path, "video"))
    start = file.read(12)
    file.seek(0)
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        kind = "mov"
    elif start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        kind = "avi"
    elif start[:4] == b"\x1a\x45\xdf\xa3":
        kind = "matroska"
    else:
        raise InputError(f"{path} is no MP4, MOV, AVI, MKV or WEBM video: convert it to mp4")
    try:
        container = av.open(file, format=kind, metadata_errors="replace")
    except av.FFmpegError as error:
        raise InputError(f"{path} is no video that FFmpeg can read: convert it to mp4") from error
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        container.close()
        raise InputError(f"{path} has no picture that FFmpeg can read: convert it to mp4")
    return container


def decode(container: Any, stream: Any) -> Iterator[Any]:
    """The frames of a stream; damaged ones are left out, as players do."""
    packets = container.demux(stream)
    while True:
        try:
            frames = next(packets).decode()
        except StopIteration:
            return
        except av.error.InvalidDataError:
            continue
        yield from frames


def start_of(container: Any) -> Fraction:
    """When picture and sound begin, in seconds."""
    return Fraction(container.start_time or 0, av.time_base)


def read_frames(container: Any) -> Iterator[Frame]:
    """The frames of a video. One without a time follows the one before."""
    stream = container.streams.best("video")
    stream.thread_type = "AUTO"
    start, step, first, due = start_of(container), float(1 / (stream.average_rate or 25)), None, 0.0
    for frame in decode(container, stream):
        first = first or frame
        shown = float(frame.pts * frame.time_base - start) if frame.pts is not None else due
        lasts = float(frame.duration * frame.time_base) or step
        image_HW3 = frame.to_ndarray(format="rgb24", width=first.width, height=first.height)
        yield Frame(np.ascontiguousarray(np.rot90(image_HW3, first.rotation // 90)), shown, lasts)
        due = shown + lasts


def parse_frames(scenes: SceneParser, frames: Iterator[Frame]) -> Iterator[tuple[Frame, Scene]]:
    """Each frame and what it shows; ``AT_ONCE`` frames are parsed together."""
    follower = Follower(scenes)
    found = ((frame, follower.next(frame.image_HW3)) for frame in frames)
    while group := list(islice(found, AT_ONCE)):
        members = [frame for frame, _ in group]
        photos = [frame.image_HW3 for frame in members]
        yield from zip(members, scenes.parse_found(photos, [faces for _, faces in group]), strict=True)
