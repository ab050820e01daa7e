"""Find the faces of photos and videos and parse them: for each photo a label map, an overlay and a list of its faces,
for each video one that shows the labels."""

import argparse
import errno
import glob
import json
import os
import stat
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.batch import photo_batch
from data.images import READ_SUFFIXES, natural_key, read_photo
from data.labels import LABEL_SETS, LabelSet
from faces import video
from faces.detect import Detection, Detector
from faces.scene import WHICH, Face, SceneParser
from geometry.theta import window_corners
from models.loading import load_for_inference
from models.parser import FaceParser
from scoring.pictures import colour, draw_outlines, encode, encode_labels, overlay
from training import options
from utils import runtime
from utils.cli import Parser
from utils.errors import InputError
from utils.files import write_whole
from utils.runtime import Machine, is_out_of_memory, printable, run_main

SUFFIXES = (*READ_SUFFIXES, *video.SUFFIXES)  # looked for in folders and globs
FACES = (*WHICH, "none")
BATCH_PIXELS = 2**22  # at most so many in one batch, to limit the memory
CROPS = ("predicted", "baseline")  # those that need neither the truth nor go without windows
INTERRUPTED = "interrupted: the results that are there are whole, and the same command goes on with the others"


class Job(NamedTuple):
    """A photo and the files to write for it.

    outputs: kind ("labels", "overlay", "coloured", "faces" or "probabilities") -> path.
    """

    photo: Path
    outputs: dict[str, Path]


class Result(NamedTuple):
    """What is made of a photo: labels_HW uint8; windows: corners_P42 in its pixels for each face, for the overlay;
    faces: None where the photo itself is the face; probabilities_KHW float16, None where they are not asked for."""

    labels_HW: np.ndarray
    windows: list[np.ndarray]
    faces: list[Face] | None
    probabilities_KHW: np.ndarray | None


@dataclass(frozen=True)
class Labelling:
    """How photos are labelled.

    parser: of faces. scenes: the same parser behind the face detector, None where each photo is an upright face that
    fills it. batch_size: faces at once. probabilities: they are wanted too. windows: draw them into the overlay.
    """

    parser: FaceParser
    scenes: SceneParser | None
    machine: Machine
    batch_size: int
    probabilities: bool = False
    windows: bool = False

    def open(self, path: Path) -> tuple[np.ndarray, list[Detection]]:
        """A photo, uint8 (H, W, 3), and its faces; none where it itself is the face. Raises InputError."""
        photo = read_photo(path)
        return photo, [] if self.scenes is None else self.scenes.find(photo)

    def label(self, photos: list[np.ndarray], found: list[list[Detection]]) -> list[Result]:
        """Parse photos of one size as ``open`` gives them. Raises InputError for windows that the parser lacks."""
        if self.scenes is None:
            return self._label_whole(photos)
        scenes = self.scenes.parse_found(photos, found, self.probabilities)
        return [
            Result(scene.labels_HW, [face.windows_P42 for face in scene.faces], scene.faces, scene.probs_KHW)
            for scene in scenes
        ]

    def _label_whole(self, photos: list[np.ndarray]) -> list[Result]:
        parser, machine = self.parser, self.machine
        batch = photo_batch(photos, parser.labels).to(machine.device)
        probabilities: list[np.ndarray | None] = [None] * len(photos)
        with torch.inference_mode(), runtime.autocast(machine.device, machine.amp):
            if self.probabilities:
                canvas_BKHW, theta_BP23 = parser.probabilities(batch)
                labels_BHW = canvas_BKHW.argmax(1).byte()
                canvas_BKHW /= canvas_BKHW.sum(1, keepdim=True)  # where windows overlap, the sum is more than 1
                probabilities = list(canvas_BKHW.half().cpu().numpy())
            else:
                labels_BHW, theta_BP23 = parser.parse(batch)
        if self.windows and theta_BP23 is None:
            raise InputError(f"--windows: {parser.kind} has no windows to draw; leave it out")
        size = photos[0].shape[:2]
        windows: list[list[np.ndarray]] = [[] for _ in photos]
        if theta_BP23 is not None:
            windows = [[window_corners(theta_P23, size)] for theta_P23 in theta_BP23.double().cpu().numpy()]
        return [
            Result(labels_HW, corners, None, probs_KHW)
            for labels_HW, corners, probs_KHW in zip(labels_BHW.cpu().numpy(), windows, probabilities, strict=True)
        ]


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    machine = options.machine(args)
    torch.manual_seed(args.seed)
    files, failed = find_photos(args.inputs)
    videos = [file for file in files if is_video(file)]
    photos = [file for file in files if not is_video(file)]
    jobs, unplanned = plan(photos, args)
    clips, undone = plan_videos(videos, args)
    failed += unplanned
    todo = [job for job in jobs if job.outputs]
    faceless: list[Path] = []
    done = 0
    started = time.monotonic()
    if files:
        parser = load_for_inference(options.checkpoints(args), machine.device, args.crops, args.mirror, args.labels)
        scenes = None if args.faces == "none" else SceneParser(parser, Detector(), args.faces, machine.amp)
        how = Labelling(parser, scenes, machine, args.batch_size, args.probabilities, args.windows)
        started = time.monotonic()
        if todo or clips:
            make_folder(args.out, "--out")
        if todo and args.coloured:
            make_folder(args.coloured, "--coloured")
        if todo:
            unlabelled, faceless = label_photos(how, todo)
            done = len(todo) - len(unlabelled)
            failed += unlabelled
    seconds = time.monotonic() - started
    shown = 0
    for job in clips:
        assert scenes is not None
        try:
            show(job, scenes, args.windows)
            shown += 1
        except InputError as error:
            failed.append(str(error))
    skipped = [job.photo for job in jobs if not job.outputs] + undone
    return report(args, done, shown, skipped, faceless, failed, seconds)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    parser = Parser(__doc__)
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="photos, videos, folders of them, or globs in quotes"
    )
    options.add_checkpoint_option(parser)
    parser.add_argument(
        "--labels",
        choices=tuple(LABEL_SETS),
        help="what to label; celebamask: all 19 classes, for STN-iCNN with the parser of the whole face that ships; "
        "default: the labels of the checkpoint",
    )
    parser.add_argument(
        "--faces",
        choices=FACES,
        default="all",
        help="which faces of a photo to find and parse; none: the photo is itself one upright face that fills it",
    )
    parser.add_argument(
        "--crops",
        choices=CROPS,
        default="predicted",
        help="for STN-iCNN: windows from the localizer, or from the old cropper",
    )
    options.add_mirror_option(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="folder for the results")
    group.add_argument("--overwrite", action="store_true", help="replace results that exist already")
    group.add_argument(
        "--probabilities", action="store_true", help="also save them: float16 (labels, height, width) in .npz"
    )
    group.add_argument("--windows", action="store_true", help="draw the parser's windows into the overlay")
    group.add_argument(
        "--coloured",
        type=Path,
        metavar="DIR",
        help="another folder, for the label maps as pictures in the colours of the data set's authors",
    )
    group.add_argument("--no-overlay", action="store_true", help="write no overlay")
    group.add_argument("--frame-labels", action="store_true", help="also write a label map for each frame of a video")
    options.add_machine_options(parser, batch_size=8)
    args = parser.parse_args(inputs_first(sys.argv[1:] if argv is None else argv))
    options.check(args)
    if args.windows and args.no_overlay:
        raise InputError("--windows are drawn into the overlay: leave out --no-overlay")
    if args.coloured and os.path.realpath(args.coloured) == os.path.realpath(args.out):
        raise InputError(f"--coloured {args.coloured} holds the label maps themselves: name another folder than --out")
    return args


def inputs_first(argv: Sequence[str]) -> list[str]:
    """The arguments, with photos and folders that follow the files of ``--checkpoint`` moved to the front.

    argparse takes all words up to the next option for checkpoints. The first one always is a checkpoint, so that a
    wrong file is reported instead of being parsed with the weights that ship.
    """
    moved: list[str] = []
    kept: list[str] = []
    count = -1  # words since --checkpoint; negative elsewhere
    for word in argv:
        if word.startswith("-"):
            count = 0 if word == "--checkpoint" else -1
        elif count >= 0:
            count += 1
        (moved if count > 1 and is_input(word) else kept).append(word)
    return moved + kept


def is_input(word: str) -> bool:
    """Whether an argument is a folder, is named like a photo, or is a glob."""
    named = Path(word).suffix.lower() in SUFFIXES
    return named or os.path.isdir(word) or (glob.has_magic(word) and not os.path.isfile(word))


def find_photos(inputs: list[str]) -> tuple[list[Path], list[str]]:
    """Every photo that the inputs name, once, and one line for each input that names none."""
    photos: dict[str, Path] = {}
    failed = []
    for text in inputs:
        found: list[Path] = []
        reason = "no such file or folder"
        if os.path.isdir(text):
            found, reason = list_folder(Path(text))
        elif os.path.lexists(text):
            found = [Path(text)]
        elif glob.has_magic(text):
            found = sorted((file for file in map(Path, glob.glob(text, recursive=True)) if is_photo(file)), key=str)
            reason = "no photos match"
        if not found:
            failed.append(f"{text}: {reason}")
        for file in found:
            photos.setdefault(os.path.realpath(file), file)
    return list(photos.values()), failed


def list_folder(folder: Path) -> tuple[list[Path], str]:
    """The photos of a folder, numbers in numeric order, and why there are none."""
    try:
        files = sorted(folder.iterdir(), key=lambda file: natural_key(file.name))
    except OSError as error:
        return [], f"this folder cannot be listed ({error.strerror})"
    return [file for file in files if is_photo(file)], f"no photos ({', '.join(SUFFIXES)}) in this folder"


def is_photo(path: Path) -> bool:
    """Whether a file in a folder is named like a photo; what cannot be read after all is told of when it is read."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not os.path.isdir(path)


def plan(photos: list[Path], args: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """What to write for each photo, and one line for each whose results would have another photo's name or cannot be
    written.

    Results are named after the photo's stem, or after its whole file name where several photos share a stem. Files
    that exist already are left out unless --overwrite. Raises InputError where a result would replace a photo.
    """
    stems = Counter(photo.stem for photo in photos)
    given = {os.path.realpath(photo) for photo in photos}
    taken: dict[str, Path] = {}
    jobs, failed = [], []
    for photo in photos:
        name = photo.stem if stems[photo.stem] == 1 else photo.name
        if name in taken:
            failed.append(f"{photo}: its results would be named like those of {taken[name]}: it needs another --out")
            continue
        taken[name] = photo
        outputs = {"labels": args.out / f"{name}.png"}
        if not args.no_overlay:
            outputs["overlay"] = args.out / f"{name}_overlay.jpg"
        if args.coloured:
            outputs["coloured"] = args.coloured / f"{name}.png"
        if args.faces != "none":
            outputs["faces"] = args.out / f"{name}_faces.json"
        if args.probabilities:
            outputs["probabilities"] = args.out / f"{name}.npz"
        for path in outputs.values():
            if os.path.realpath(path) in given:
                raise InputError(f"{path} is a photo to label, and its results would replace it: name another --out")
        try:
            there = {kind for kind, path in outputs.items() if is_result(path)}
        except OSError as error:
            failed.append(not_written(photo, error))
            continue
        jobs.append(Job(photo, {kind: outputs[kind] for kind in outputs if args.overwrite or kind not in there}))
    return jobs, failed


def is_video(path: Path) -> bool:
    return path.suffix.lower() in video.SUFFIXES


def plan_videos(videos: list[Path], args: argparse.Namespace) -> tuple[list[Job], list[Path]]:
    """What to write for each video, and those whose results are there already. Raises InputError for videos that would
    be replaced, whose results would have the same name, or that --faces none cannot parse."""
    if videos and args.faces == "none":
        raise InputError(f"--faces none: the faces of {videos[0]} have to be found; say --faces all or largest")
    jobs: list[Job] = []
    skipped: list[Path] = []
    taken: dict[Path, Path] = {}
    for file in videos:
        outputs = {"video": args.out / f"{file.stem}_overlay.mp4"}
        if args.frame_labels:
            outputs["frames"] = args.out / f"{file.stem}_labels"
        if other := taken.get(outputs["video"]):
            raise InputError(f"{file}: its results would be named like those of {other}: it needs another --out")
        taken[outputs["video"]] = file
        if any(os.path.realpath(path) == os.path.realpath(given) for path in outputs.values() for given in videos):
            raise InputError(
                f"{outputs['video']} is a video to parse, and its results would replace it: name another --out"
            )
        if not args.overwrite and any(os.path.lexists(path) for path in outputs.values()):
            skipped.append(file)
        else:
            jobs.append(Job(file, outputs))
    return jobs, skipped


def show(job: Job, scenes: SceneParser, windows: bool) -> None:
    """Parse a video. Raises InputError."""
    try:
        found = video.parse_video(scenes, job.photo, job.outputs["video"], job.outputs.get("frames"), windows)
    except OSError as error:
        raise InputError(not_written(job.photo, error)) from error
    rate = f"{found.frames / max(found.seconds, 1e-9):.1f} frames/s"
    target = printable(str(job.outputs["video"]))
    print(f"{target}: {found.frames} frames, {found.with_faces} with faces ({rate})")


def is_result(path: Path) -> bool:
    """Whether a result is there already. Raises OSError where none can be written, as its name is too long or
    something else has it."""
    try:
        mode = os.lstat(path).st_mode
    except (
        FileNotFoundError,
        NotADirectoryError,
    ):  # as yet; ``make_folder`` tells where no folder can be made
        return False
    if stat.S_ISREG(mode) or os.path.isfile(path):
        return True
    raise OSError(errno.EEXIST, f"{path} is there and is no file")


def not_written(photo: Path, error: Exception) -> str:
    reason = "too little memory" if is_out_of_memory(error) else getattr(error, "strerror", None) or error
    return f"{photo}: its results could not be written ({reason})"


def make_folder(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {folder} cannot be made ({error.strerror}): name another folder") from error


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
    threads, labels = how.machine.threads, how.parser.labels
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
        results: list[Result] | None = None
        try:
            results = how.label([photo for _, photo, _ in group], [found for _, _, found in group])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if results is not None:
            for (job, photo, _), result in zip(group, results, strict=True):
                if result.faces == []:
                    faceless.append(job.photo)
                writing.append((job, encoders.submit(write, job, photo, result, labels, how.windows)))
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


def put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def write(job: Job, photo: np.ndarray, result: Result, labels: LabelSet, windows: bool) -> None:
    """Write the job's files, all or none. Raises OSError."""
    made: dict[str, Callable[[BinaryIO], object]] = {}
    if "labels" in job.outputs:
        made["labels"] = partial(put, encode_labels(result.labels_HW, labels))
    if "overlay" in job.outputs:
        shown = overlay(photo, result.labels_HW, labels)
        if windows:
            for corners_P42 in result.windows:
                shown = draw_outlines(shown, corners_P42, labels)
        made["overlay"] = partial(put, encode(Image.fromarray(shown), "JPEG", quality=92))
    if "coloured" in job.outputs:
        picture = Image.fromarray(colour(result.labels_HW, labels, published=True))
        made["coloured"] = partial(put, encode(picture, "PNG"))
    if "faces" in job.outputs and result.faces is not None:
        found = {"labels": labels.name, "faces": [face.report() for face in result.faces]}
        made["faces"] = partial(put, (json.dumps(found, indent=1) + "\n").encode())
    if "probabilities" in job.outputs and result.probabilities_KHW is not None:
        made["probabilities"] = partial(np.savez_compressed, probabilities=result.probabilities_KHW)
    placed: list[Path] = []
    with ExitStack() as folders:
        parents = {job.outputs[kind].parent for kind in made}
        beside = {
            parent: folders.enter_context(tempfile.TemporaryDirectory(prefix=".", dir=parent)) for parent in parents
        }
        parts = {kind: Path(beside[job.outputs[kind].parent], kind) for kind in made}
        for kind, save in made.items():
            write_whole(parts[kind], save)
        try:
            for kind in made:
                os.replace(parts[kind], job.outputs[kind])
                placed.append(job.outputs[kind])
        except OSError:
            for path in placed:
                path.unlink(missing_ok=True)
            raise


def report(
    args: argparse.Namespace,
    done: int,
    shown: int,
    skipped: list[Path],
    faceless: list[Path],
    failed: list[str],
    seconds: float,
) -> int:
    """Print what was done and what was not. Returns the exit status."""
    if done:
        rate = f"{done / max(seconds, 1e-9):.1f} photos/s"
        print(f"{done} photo{'s' * (done != 1)} labelled in {printable(str(args.out))} ({rate})")
    if faceless:
        print(f"no face found in {len(faceless)}, whose label map is empty:")
        for path in faceless:
            print(f"  {printable(str(path))}")
    if skipped:
        where = printable(str(args.out))
        print(f"{len(skipped)} skipped, their results are in {where} already (--overwrite replaces them):")
        for path in skipped:
            print(f"  {printable(str(path))}")
    sys.stdout.flush()
    for line in failed:
        print(f"failed: {printable(line)}", file=sys.stderr)
    if not done and not shown and not skipped:
        print("error: no photo was labelled: see the lines above", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_main(main, INTERRUPTED))
