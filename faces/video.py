"""Videos: the faces of every frame, followed and smoothed over time, drawn into a video of the same size."""

import math
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from faces.detect import Detection
from faces.scene import Scene, SceneParser
from scoring.pictures import draw_outlines, encode_labels, overlay
from utils.errors import InputError
from utils.files import open_regular, write_bytes

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
CODEC = cv2.VideoWriter.fourcc(*"mp4v")  # the only one for mp4 that OpenCV's packages write everywhere
SEARCH = 12  # the whole frame is searched for new faces once in so many frames; between, known ones are followed
AT_ONCE = 8  # frames that are parsed together
STILL, SLOWEST = 0.04, 0.25  # movement of the points, in sides of the face's box, and weight of new points without any


class Report(NamedTuple):
    """frames: written. with_faces: of them, those that show one. seconds: that it took."""

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


def parse_video(
    scenes: SceneParser, source: Path, target: Path, labels_folder: Path | None = None, windows: bool = False
) -> Report:
    """Parse a video into ``target``, an mp4 that shows the labels over the frames, without sound.

    labels_folder: where the frames' label maps go as PNGs, 000001.png for the first; None: none are written. windows:
    draw the parser's windows too. Where it is interrupted (KeyboardInterrupt), the frames so far become ``target``
    before the exception goes on. Raises InputError for a file that is no video and where nothing can be written.
    """
    with open_regular(source, "video") as file:
        if not is_container(file.read(12)):
            raise InputError(f"{source} is no MP4, MOV, AVI, MKV or WEBM video: convert it to mp4")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # our own line says what is wrong with a video
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(str(source))
    width, height = (int(capture.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if not capture.isOpened() or width < 1 or height < 1:
        raise InputError(f"{source} is no video that OpenCV can read: convert it to mp4")
    rate = capture.get(cv2.CAP_PROP_FPS)
    rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else 25.0
    temporary = target.with_name(f".{secrets.token_hex(4)}.mp4")
    writer = cv2.VideoWriter(str(temporary), CODEC, rate, (width, height))
    if not writer.isOpened():
        raise InputError(f"{target} cannot be written: name another file")
    total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    bar = tqdm(total=total if total > 0 else None, unit="frame", desc=target.name, disable=None, leave=False)
    frames = with_faces = 0
    interrupted: KeyboardInterrupt | None = None
    started = time.monotonic()
    try:
        if labels_folder is not None:
            labels_folder.mkdir(parents=True, exist_ok=True)
        for frame_HW3, scene in parse_frames(scenes, read_frames(capture)):
            shown = overlay(frame_HW3, scene.labels_HW, scene.labels)
            for face in scene.faces if windows else ():
                shown = draw_outlines(shown, face.windows_P42, scene.labels)
            writer.write(cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
            frames, with_faces = frames + 1, with_faces + bool(scene.faces)
            if labels_folder is not None:
                write_bytes(labels_folder / f"{frames:06d}.png", encode_labels(scene.labels_HW, scene.labels))
            bar.update()
    except KeyboardInterrupt as error:
        interrupted = error
    except BaseException:
        writer.release()
        temporary.unlink(missing_ok=True)
        raise
    finally:
        bar.close()
        capture.release()
    writer.release()
    if frames:
        os.replace(temporary, target)
    temporary.unlink(missing_ok=True)
    if interrupted is not None:
        if frames:
            tqdm.write(f"{target} ends after {frames} frames; parse it again for all of them", file=sys.stderr)
        raise interrupted
    if not frames:
        raise InputError(f"{source} has no frame that OpenCV can read: convert it to mp4")
    return Report(frames, with_faces, time.monotonic() - started)


def is_container(start: bytes) -> bool:
    """Whether a file that begins so holds a video itself; lists of other files, which FFmpeg would open too, do not."""
    return (
        start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # MP4, MOV
        or (start[:4] == b"RIFF" and start[8:12] == b"AVI ")
        or start[:4] == b"\x1a\x45\xdf\xa3"  # Matroska, WebM
    )


def read_frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames of a video, upright: uint8 (H, W, 3), RGB."""
    while True:
        there, frame_HW3 = capture.read()
        if not there:
            return
        yield cv2.cvtColor(frame_HW3, cv2.COLOR_BGR2RGB)


def parse_frames(scenes: SceneParser, frames: Iterator[np.ndarray]) -> Iterator[tuple[np.ndarray, Scene]]:
    """Each frame and what it shows; ``AT_ONCE`` frames are parsed together."""
    follower = Follower(scenes)
    found = ((frame_HW3, follower.next(frame_HW3)) for frame_HW3 in frames)
    while group := list(islice(found, AT_ONCE)):
        photos = [frame_HW3 for frame_HW3, _ in group]
        yield from zip(photos, scenes.parse_found(photos, [faces for _, faces in group]), strict=True)
