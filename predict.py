"""Label photos: for each one a label map, an overlay and, if wanted, the labels' probabilities."""

import argparse
import glob
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.images import PHOTO_SUFFIXES, natural_key, read_photo
from data.labels import COLOURS
from data.loading import photo_batch
from models.pretrained import load_for_inference
from models.stn_icnn import STNiCNN
from utils import options, runtime
from utils.errors import InputError
from utils.parsing import label_maps, label_probabilities
from utils.runtime import run_main
from utils.visualize import draw_windows, overlay

SUFFIXES = (*PHOTO_SUFFIXES, ".bmp", ".tif", ".tiff", ".webp")  # looked for in folders and globs
BATCH_PIXELS = 2**22  # at most so many in one batch, for the sake of memory
NEEDED = {"predicted": ("coarse", "localizer", "parts"), "baseline": ("coarse", "parts")}


class Job(NamedTuple):
    """A photo and what is to be written for it: kind ("labels", "overlay" or "probabilities") -> path."""

    photo: Path
    outputs: dict[str, Path]


class Result(NamedTuple):
    """What the model makes of a photo: labels_HW uint8, theta_P23, probabilities_9HW float16 or None."""

    labels_HW: np.ndarray
    theta_P23: np.ndarray
    probabilities_9HW: np.ndarray | None


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    device = runtime.pick_device(args.device)
    torch.manual_seed(args.seed)
    photos, failed = find_photos(args.inputs)
    jobs, clashing = plan(photos, args)
    failed += clashing
    model = load_for_inference(options.checkpoints(args), device, NEEDED[args.crops], args.mirror) if photos else None
    todo = [job for job in jobs if job.outputs]
    started = time.monotonic()
    if todo and model is not None:
        make_folder(args.out)
        failed += label_photos(model, todo, args, device)
    seconds = time.monotonic() - started
    done = len(todo) - sum(path in {job.photo for job in todo} for path, _ in failed)
    return report(args, done, [job.photo for job in jobs if not job.outputs], failed, seconds)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    parser = options.Parser(__doc__)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photos, folders of photos, or globs in quotes")
    options.add_checkpoint_option(parser, nargs=1)
    parser.add_argument("--crops", choices=tuple(NEEDED), default="predicted", help="localizer, or the old cropper")
    options.add_mirror_option(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="where the results go")
    group.add_argument("--overwrite", action="store_true", help="replace results that lie there already")
    group.add_argument("--probabilities", action="store_true", help="save them too: float16 (9, height, width) in .npz")
    group.add_argument("--windows", action="store_true", help="draw the six windows into the overlay")
    group.add_argument("--no-overlay", action="store_true", help="write no overlay")
    options.add_machine_options(parser, batch_size=8)
    args = parser.parse_args(argv)
    options.check(args)
    if args.windows and args.no_overlay:
        raise InputError("--windows are drawn into the overlay: leave out --no-overlay")
    return args


def find_photos(inputs: list[str]) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Every photo that the inputs name, once, and (input, reason) for each that names none."""
    photos: dict[Path, Path] = {}
    failed = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            found = [file for file in list_folder(path) if is_photo(file)]
            reason = f"no photos ({', '.join(SUFFIXES)}) in this folder"
        elif path.exists():
            found, reason = [path], ""
        else:
            found = sorted((file for file in map(Path, glob.glob(text, recursive=True)) if is_photo(file)), key=str)
            reason = "no photos match" if glob.has_magic(text) else "no such file or folder"
        if not found:
            failed.append((path, reason))
        for file in found:
            photos.setdefault(file.resolve(), file)
    return list(photos.values()), failed


def list_folder(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=lambda file: natural_key(file.name))
    except OSError:
        return []


def is_photo(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def plan(photos: list[Path], args: argparse.Namespace) -> tuple[list[Job], list[tuple[Path, str]]]:
    """What to write for each photo, and (photo, reason) for those whose results would have another's name.

    Results are named by the photo's stem, those of photos with the same stem by the whole file name. Files that are
    there already are left out unless --overwrite. Raises InputError where a result would replace a photo.
    """
    stems = Counter(photo.stem for photo in photos)
    given = {photo.resolve() for photo in photos}
    taken: dict[str, Path] = {}
    jobs, failed = [], []
    for photo in photos:
        name = photo.stem if stems[photo.stem] == 1 else photo.name
        if name in taken:
            failed.append((photo, f"its results would be named like those of {taken[name]}: it needs another --out"))
            continue
        taken[name] = photo
        outputs = {"labels": args.out / f"{name}.png"}
        if not args.no_overlay:
            outputs["overlay"] = args.out / f"{name}_overlay.jpg"
        if args.probabilities:
            outputs["probabilities"] = args.out / f"{name}.npz"
        for path in outputs.values():
            if path.resolve() in given:
                raise InputError(f"{path} is a photo to label, and its results would replace it: name another --out")
        jobs.append(Job(photo, {kind: path for kind, path in outputs.items() if args.overwrite or not path.exists()}))
    return jobs, failed


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made ({error.strerror}): name another folder") from error


def label_photos(
    model: STNiCNN, jobs: list[Job], args: argparse.Namespace, device: torch.device
) -> list[tuple[Path, str]]:
    """Decode ahead, label in batches of one size, encode behind. Returns (photo, reason) for each that failed."""
    failed: list[tuple[Path, str]] = []
    threads = options.threads(args.workers)
    writing: deque[tuple[Job, Future[None]]] = deque()
    group: list[tuple[Job, np.ndarray]] = []
    bar = tqdm(total=len(jobs), unit="photo", disable=None, leave=False)

    def settle(most: int) -> None:
        while len(writing) > most:
            job, future = writing.popleft()
            try:
                future.result()
            except OSError as error:
                failed.append((job.photo, f"its results could not be written ({error.strerror or error})"))
            bar.update()

    def flush() -> None:
        if not group:
            return
        try:
            results = run_model(model, [photo for _, photo in group], args, device)
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            failed.extend((job.photo, "too large for this machine's memory") for job, _ in group)
            bar.update(len(group))
        else:
            for (job, photo), result in zip(group, results, strict=True):
                writing.append((job, encoders.submit(write, job, photo, result, args.windows)))
        group.clear()
        settle(2 * threads)

    with ThreadPoolExecutor(threads) as decoders, ThreadPoolExecutor(threads) as encoders:
        for job, future in ahead(decoders, jobs, 2 * threads):
            try:
                photo = future.result()
            except InputError as error:
                failed.append((job.photo, str(error)))
                bar.update()
                continue
            most = min(args.batch_size, max(1, BATCH_PIXELS // (photo.shape[0] * photo.shape[1])))
            if group and (group[0][1].shape != photo.shape or len(group) >= most):
                flush()
            group.append((job, photo))
        flush()
        settle(0)
    bar.close()
    return failed


def ahead(pool: ThreadPoolExecutor, jobs: list[Job], count: int) -> Iterator[tuple[Job, "Future[np.ndarray]"]]:
    """The jobs in order with their photos, ``count`` of which are decoded ahead."""
    waiting: deque[tuple[Job, Future[np.ndarray]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(read_photo, job.photo)))
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def run_model(model: STNiCNN, photos: list[np.ndarray], args: argparse.Namespace, device: torch.device) -> list[Result]:
    """Label photos of one size, uint8 (H, W, 3)."""
    batch = photo_batch(photos).to(device)
    probabilities: list[np.ndarray | None] = [None] * len(photos)
    with torch.inference_mode(), runtime.autocast(device, args.amp):
        label = label_probabilities if args.probabilities else label_maps
        maps, theta_BP23 = label(model, batch, args.crops)
        labels_BHW = maps.argmax(1).byte() if args.probabilities else maps
        if args.probabilities:  # where windows overlap, they sum to more than 1
            probabilities = list(maps.div_(maps.sum(1, keepdim=True)).half().cpu().numpy())
    labels, theta = labels_BHW.cpu().numpy(), theta_BP23.float().cpu().numpy()
    return [Result(*parts) for parts in zip(labels, theta, probabilities, strict=True)]


def write(job: Job, photo: np.ndarray, result: Result, windows: bool) -> None:
    """Write the job's files. Raises OSError."""
    if path := job.outputs.get("labels"):
        picture = Image.fromarray(result.labels_HW)
        picture.putpalette(COLOURS.ravel().tolist())
        save_whole(path, lambda file: picture.save(file, format="PNG"))
    if path := job.outputs.get("overlay"):
        shown = overlay(photo, result.labels_HW)
        if windows:
            shown = draw_windows(shown, result.theta_P23)
        save_whole(path, lambda file: Image.fromarray(shown).save(file, format="JPEG", quality=92))
    values_9HW = result.probabilities_9HW
    if (path := job.outputs.get("probabilities")) and values_9HW is not None:
        save_whole(path, lambda file: np.savez_compressed(file, probabilities=values_9HW))


def save_whole(path: Path, save: Callable[[BinaryIO], None]) -> None:
    """Write under a temporary name, then rename, so that no half file is ever taken for a result."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            save(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def report(
    args: argparse.Namespace, done: int, skipped: list[Path], failed: list[tuple[Path, str]], seconds: float
) -> int:
    """Tell what was done and what not; returns the exit status."""
    if done:
        print(f"{done} photo{'s' * (done != 1)} labelled in {args.out} ({done / max(seconds, 1e-9):.1f} photos/s)")
    if skipped:
        print(f"{len(skipped)} skipped, their results lie in {args.out} already (--overwrite replaces them):")
        for path in skipped:
            print(f"  {path}")
    sys.stdout.flush()
    for path, reason in failed:
        text = reason if str(path) in reason else f"{path}: {reason}"
        print(f"failed: {text}", file=sys.stderr)
    if not done and not skipped:
        print("error: no photo was labelled: see the lines above", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_main(main))
