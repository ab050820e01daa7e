"""Many photos at once: threads decode, find faces and write while the parser labels batches of one size."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.batch import photo_batch
from data.images import as_photo
from faces.align import whole_photo
from faces.detect import Detection
from faces.results import Job, not_written, write
from faces.scene import Face, Scene, SceneParser
from geometry.sampling import most_probable
from geometry.theta import window_corners
from models.parser import BATCH_PIXELS, FaceParser
from utils import runtime
from utils.errors import InputError
from utils.runtime import Machine, is_out_of_memory


@dataclass(frozen=True)
class Labelling:
    """How photos are labelled.

    parser: of faces. scenes: the same parser behind the face detector, None where each photo is an upright face that
    fills it. batch_size: faces at once. probabilities: they are wanted too. windows: draw them into the overlay.
    opacity, grey: see ``faces.results.write``.
    """

    parser: FaceParser
    scenes: SceneParser | None
    machine: Machine
    batch_size: int
    probabilities: bool = False
    windows: bool = False
    opacity: float = 0.5
    grey: bool = False

    def open(self, path: Path) -> tuple[np.ndarray, list[Detection]]:
        """A photo, uint8 (H, W, 3), and its faces; none where it itself is the face. Raises InputError."""
        photo = as_photo(path)
        return photo, [] if self.scenes is None else self.scenes.find(photo)

    def label(self, photos: list[np.ndarray], found: list[list[Detection]]) -> list[Scene]:
        """Parse photos of one size as ``open`` gives them. Raises InputError for windows that the parser lacks."""
        if self.scenes is None:
            return self._label_whole(photos)
        return self.scenes.parse_found(photos, found, self.probabilities)

    def _label_whole(self, photos: list[np.ndarray]) -> list[Scene]:
        """Each photo as one face, without what ``Face`` says of its labels."""
        parser, machine = self.parser, self.machine
        batch = photo_batch(photos, parser.labels).to(machine.device)
        probabilities: list[np.ndarray | None] = [None] * len(photos)
        with torch.inference_mode(), runtime.autocast(machine.device, machine.amp):
            if self.probabilities:
                canvas_BKHW, theta_BP23 = parser.probabilities(batch)
                labels_BHW = most_probable(canvas_BKHW, 1)
                canvas_BKHW /= canvas_BKHW.sum(1, keepdim=True)  # where windows overlap, the sum is more than 1
                probabilities = list(canvas_BKHW.half().cpu().numpy())
            else:
                labels_BHW, theta_BP23 = parser.parse(batch)
        if self.windows and theta_BP23 is None:
            raise InputError(f"windows: {parser.kind} has none to draw; leave them out")
        size, windows = photos[0].shape[:2], [np.zeros((0, 4, 2))] * len(photos)
        if theta_BP23 is not None:
            windows = [window_corners(theta_P23, size) for theta_P23 in theta_BP23.double().cpu().numpy()]
        faces = [[Face(whole_photo(*size), corners_P42, {}, {}, None)] for corners_P42 in windows]
        found = zip(labels_BHW.cpu().numpy(), faces, probabilities, strict=True)
        return [
            Scene(parser.labels, labels_HW, (labels_HW > 0).astype(np.uint16), face, probs_KHW)
            for labels_HW, face, probs_KHW in found
        ]


def label_photos(how: Labelling, jobs: list[Job]) -> tuple[list[str], list[Path]]:
    """Parse the photos in batches of one size, while threads decode the next ones, find their faces, and write the
    results.

    Returns one line for each that failed, and the photos without a face. Raises InputError for windows that the parser
    lacks.
    """
    failed: list[str] = []
    faceless: list[Path] = []
    writing: deque[tuple[Job, Future[None]]] = deque()
    group: list[tuple[Job, np.ndarray, list[Detection]]] = []
    threads = how.machine.threads
    bar = tqdm(total=len(jobs), unit="photo", disable=None, leave=False)

    def fail(line: str) -> None:
        failed.append(line)
        bar.update()

    def settle(most: int) -> None:
        while len(writing) > most:
            job, future = writing.popleft()
            try:
                future.result()
            except Exception as error:
                if not isinstance(error, OSError) and not is_out_of_memory(error):
                    raise
                fail(not_written(job.photo, error))
            else:
                bar.update()

    def flush(group: list[tuple[Job, np.ndarray, list[Detection]]]) -> None:
        scenes: list[Scene] | None = None
        try:
            scenes = how.label([photo for _, photo, _ in group], [found for _, _, found in group])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if scenes is not None:
            for (job, photo, _), scene in zip(group, scenes, strict=True):
                if not scene.faces:
                    faceless.append(job.photo)
                writing.append((job, encoders.submit(write, job, photo, scene, how.windows, how.opacity, how.grey)))
        elif len(group) > 1:
            for member in group:  # one alone may fit
                flush([member])
        else:
            fail(f"{group[0][0].photo}: too large for this machine's memory")
        settle(2 * threads)

    with ThreadPoolExecutor(threads) as decoders, ThreadPoolExecutor(threads) as encoders:
        for job, future in ahead(decoders, how, jobs, 2 * threads):
            try:
                photo, found = future.result()
            except InputError as error:
                fail(str(error))
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                fail(f"{job.photo}: too large for this machine's memory")
                continue
            faces = sum(max(1, len(others)) for _, _, others in group) + max(1, len(found))
            pixels = (len(group) + 1) * photo.shape[0] * photo.shape[1]
            if group and (group[0][1].shape != photo.shape or faces > how.batch_size or pixels > BATCH_PIXELS):
                flush(group)
                group = []
            group.append((job, photo, found))
        if group:
            flush(group)
        settle(0)
    bar.close()
    return failed, faceless


def ahead(
    pool: ThreadPoolExecutor, how: Labelling, jobs: list[Job], count: int
) -> Iterator[tuple[Job, "Future[tuple[np.ndarray, list[Detection]]]"]]:
    """The jobs in order with their photos and faces; ``count`` photos are opened in advance."""
    waiting: deque[tuple[Job, Future[tuple[np.ndarray, list[Detection]]]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(how.open, job.photo)))
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
