"""Faces as a camera sees them: the newest frame is parsed, and those that came meanwhile are dropped, not delayed."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from faces.scene import SceneParser, drawn
from faces.video import Film, Follower, Frame, Report
from utils.errors import InputError

TITLE, ESCAPE = "faces (q: end)", 27


class Camera:
    """The frames of an OpenCV device, read by a thread of its own. source: the number of a camera, a URL, or a video
    file, which is played at its own rate. seen: frames that came. Raises InputError where it cannot be opened."""

    def __init__(self, source: str) -> None:
        self.capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
        if not self.capture.isOpened():
            raise InputError(f"--camera {source}: no such camera or stream: try another number, 0 being the first")
        rate = self.capture.get(cv2.CAP_PROP_FPS) if os.path.isfile(source) else 0
        self.pause = 1 / rate if rate > 0 else 0.0
        self.newest: tuple[np.ndarray, float] | None = None
        self.seen, self.ended, self.changed = 0, False, threading.Condition()
        self.started = time.monotonic()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while not self.ended:
            time.sleep(max(0.0, self.started + self.seen * self.pause - time.monotonic()))
            there, image_HW3 = self.capture.read()
            with self.changed:
                self.ended = self.ended or not there
                if there:
                    self.seen, self.newest = self.seen + 1, (image_HW3, time.monotonic() - self.started)
                self.changed.notify()
        self.capture.release()

    def frames(self) -> Iterator[Frame]:
        """The newest frame whenever one is asked for, until the device ends. A duration is that of the frame before."""
        before = 0.0
        while True:
            with self.changed:
                while self.newest is None:
                    if self.ended:
                        return
                    self.changed.wait(1)
                (image_HW3, seconds), self.newest = self.newest, None
            yield Frame(cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB), seconds, max(seconds - before, 0.01))
            before = seconds


def watch(scenes: SceneParser, camera: Camera, video: Path | None, windows: bool = False) -> Report:
    """Parse what a camera sees until it ends, or Ctrl-C, or q in the window.

    video: an mp4 to write in place of a window. windows: draw the parser's windows too. Raises InputError where there
    can be no window, OSError where nothing can be written.
    """
    follower, film, count, with_faces = Follower(scenes), None, 0, 0
    with ExitStack() as stack:
        if video:
            part = Path(stack.enter_context(TemporaryDirectory(prefix=".", dir=video.parent)), "video")
        try:
            for frame in camera.frames():
                (scene,) = scenes.parse_found([frame.image_HW3], [follower.next(frame.image_HW3)])
                shown_HW3 = drawn(frame.image_HW3, scene, windows)
                count, with_faces = count + 1, with_faces + bool(scene.faces)
                if video:
                    film = film or Film(part, None, stack)
                    film.add(shown_HW3, frame)
                elif not _shown(shown_HW3):
                    break
        except KeyboardInterrupt:
            pass
        camera.ended = True
        if video and film is not None:
            film.finish(whole=True)
            os.replace(part, video)
    return Report(count, with_faces, time.monotonic() - camera.started)


def _shown(image_HW3: np.ndarray) -> bool:
    """Show a picture; False once the user has ended that."""
    try:
        cv2.imshow(TITLE, cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(1) & 0xFF not in (ESCAPE, ord("q"))
    except cv2.error:
        raise InputError(
            "--camera: this OpenCV opens no windows: add --out DIR for a video, or install opencv-python without "
            "-headless"
        ) from None
