"""Detects and parses the faces in photos and videos. Writes a label map, an overlay and a list of faces for each photo,
an overlay video and a list of the faces in each frame for each video."""

import argparse
import glob
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.labels import LABEL_SETS
from faces.detect import Detector
from faces.inputs import SUFFIXES, find_photos, is_video
from faces.labelling import Labelling, label_photos
from faces.results import Job, Wanted, not_written, plan
from faces.scene import WHICH, SceneParser
from models.loading import load_for_inference
from scoring import options
from scoring.pictures import encode, legend
from utils.cli import Parser
from utils.errors import InputError
from utils.files import make_folder, write_bytes
from utils.runtime import Machine, is_out_of_memory, printable, run_main

FACES = (*WHICH, "none")
OPACITY = 0.5
OUT = Path("out")
CROPS = ("predicted", "baseline")  # those that need neither the truth nor go without windows
INTERRUPTED = "interrupted: the results so far are complete, and the same command continues with the others"


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    machine = options.machine(args)
    if args.camera:
        return live(args, machine)
    args.out = args.out or OUT
    files, failed = find_photos(args.inputs, args.recursive)
    if args.recursive:  # not the results of an earlier call
        own = {Path(os.path.realpath(folder)) for folder in (args.out, args.coloured) if folder}
        files = [file for file in files if not own & {*Path(os.path.realpath(file)).parents}]
    videos = [file for file in files if is_video(file)]
    if videos and args.faces == "none":
        raise InputError(f"--faces none is for photos, and {videos[0]} is a video: leave one of them out")
    for flag in ("probabilities", "coloured", "grey", "owners", "opacity"):
        if videos and getattr(args, flag) not in (None, False, OPACITY):
            raise InputError(f"--{flag} is for photos, and {videos[0]} is a video: leave one of them out")
    asked = {
        "overlay": not args.no_overlay,
        "video": not args.no_overlay,
        "coloured": args.coloured,
        "faces": args.faces != "none",
        "probabilities": args.probabilities,
        "frames": args.frame_labels,
        "owners": args.owners,
    }
    kinds = ["labels", "times", *(kind for kind in asked if asked[kind])]
    roots = tuple(Path(text) for text in args.inputs if args.recursive and os.path.isdir(text))
    wanted = Wanted(args.out, kinds, args.coloured, args.overwrite, roots)
    jobs, unplanned = plan(files, wanted)
    failed += unplanned
    photos = [job for job in jobs if job.outputs and not is_video(job.photo)]
    clips = [job for job in jobs if job.outputs and is_video(job.photo)]
    faceless: list[Path] = []
    labelled = shown = 0
    started = time.monotonic()
    if files:
        parser = load_for_inference(
            options.checkpoints(args), machine.device, args.crops, args.mirror, args.labels, machine.amp
        )
        scenes = None
        if args.faces != "none":
            scenes = SceneParser(parser, Detector(), args.faces, machine.amp, args.batch_size)
        how = Labelling(
            parser, scenes, machine, args.batch_size, args.probabilities, args.windows, args.opacity, args.grey
        )
        started = time.monotonic()
        if photos or clips:
            make_folder(args.out, "--out")
        if photos and args.coloured:
            make_folder(args.coloured, "--coloured")
        for folder in (
            {path.parent for job in photos + clips for path in job.outputs.values()} if args.recursive else ()
        ):
            make_folder(folder, "--out")
        if args.legend:
            write_bytes(args.legend, encode(Image.fromarray(legend(parser.labels)), "PNG"))
        if photos:
            unlabelled, faceless = label_photos(how, photos)
            labelled = len(photos) - len(unlabelled)
            failed += unlabelled
    seconds = time.monotonic() - started
    for job in clips:
        assert scenes is not None
        try:
            show(job, scenes, args.windows)
            shown += 1
        except InputError as error:
            failed.append(str(error))
    skipped = [job.photo for job in jobs if not job.outputs]
    return report(args, labelled, shown, skipped, faceless, failed, seconds)


def live(args: argparse.Namespace, machine: Machine) -> int:
    """Parse what a camera sees. Raises InputError."""
    from av import FFmpegError  # photos need no PyAV

    from faces import camera

    target = args.out and args.out / "camera_overlay.mp4"
    if target:
        options.refuse_existing("--out", target, args.overwrite)
    weights = options.checkpoints(args)
    parser = load_for_inference(weights, machine.device, args.crops, args.mirror, args.labels, machine.amp)
    scenes = SceneParser(parser, Detector(), args.faces, machine.amp, args.batch_size)
    device = camera.Camera(args.camera)
    if target:
        make_folder(args.out, "--out")
    try:
        found = camera.watch(scenes, device, target, args.windows)
    except (OSError, FFmpegError) as error:
        raise InputError(not_written(Path(args.camera), error)) from error
    rate = f"{found.frames / max(found.seconds, 1e-9):.1f} frames/s"
    dropped = f"{device.seen - found.frames} dropped"
    shown = f"{printable(str(target))}: " if target and found.frames else ""
    print(f"{shown}{found.frames} frames, {found.with_faces} with faces ({rate}), {dropped}")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    cli = Parser(__doc__)
    cli.add_argument("inputs", nargs="*", metavar="INPUT", help="photos, videos, folders of them, or globs in quotes")
    cli.add_argument(
        "--camera",
        metavar="N",
        help="parse camera N (0 is the first; or a URL) instead: in a window, or as a video in --out DIR",
    )
    cli.add_argument("--recursive", action="store_true", help="also search subfolders; --out gets the same subfolders")
    options.add_checkpoint_option(cli)
    cli.add_argument(
        "--labels",
        choices=tuple(LABEL_SETS),
        help="label set to predict; celebamask: all 19 classes, for STN-iCNN with the shipped whole-face parser; "
        "default: that of the checkpoint",
    )
    what = "which faces to detect and parse; none: no detection, the photo is one upright face that fills it"
    cli.add_argument("--faces", choices=FACES, default="all", help=what)
    what = "for STN-iCNN: windows from the localizer, or from the old cropper"
    cli.add_argument("--crops", choices=CROPS, default="predicted", help=what)
    options.add_mirror_option(cli)
    group = cli.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="DIR", help=f"folder for the results; default: {OUT}")
    group.add_argument("--overwrite", action="store_true", help="replace existing results")
    group.add_argument(
        "--probabilities", action="store_true", help="also save probabilities: float16 (labels, height, width) in .npz"
    )
    group.add_argument("--windows", action="store_true", help="draw the parser's windows into the overlay")
    what = "also save label maps in the colours of the data set's authors, into this other folder"
    group.add_argument("--coloured", type=Path, metavar="DIR", help=what)
    group.add_argument(
        "--opacity", type=float, default=OPACITY, metavar="X", help="opacity of the colours in photo overlays, 0-1"
    )
    group.add_argument("--legend", type=Path, metavar="FILE.png", help="also write a legend of the labels' colours")
    group.add_argument("--grey", action="store_true", help="write label maps as 8-bit grey PNGs, without a palette")
    group.add_argument("--owners", action="store_true", help="also save the face number of each pixel, as a 16-bit PNG")
    group.add_argument("--no-overlay", action="store_true", help="write no overlay")
    group.add_argument("--frame-labels", action="store_true", help="also write a label map for each video frame")
    options.add_machine_options(cli, batch_size=8)
    args = cli.parse_args(inputs_first(sys.argv[1:] if argv is None else argv))
    options.check(args)
    if bool(args.inputs) == bool(args.camera):
        raise InputError("give either photos or videos (INPUT), or --camera N")
    if args.camera and args.faces == "none":
        raise InputError("--faces none: a camera's faces are always detected; use --faces all or largest")
    if args.windows and args.no_overlay:
        raise InputError("--windows are drawn into the overlay: leave out --no-overlay")
    if args.owners and args.faces == "none":
        raise InputError("--owners needs detected faces: leave out --faces none")
    if not 0 <= args.opacity <= 1:
        raise InputError(f"--opacity {args.opacity}: must be between 0 and 1")
    if args.coloured and os.path.realpath(args.coloured) == os.path.realpath(args.out or OUT):
        raise InputError(f"--coloured {args.coloured} is the folder of the label maps: choose one other than --out")
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


def show(job: Job, scenes: SceneParser, windows: bool) -> None:
    """Parse a video. Raises InputError."""
    from av import FFmpegError

    from faces import video

    try:
        found = video.parse_video(scenes, job.photo, job.outputs, windows)
    except Exception as error:
        if not isinstance(error, (OSError, FFmpegError)) and not is_out_of_memory(error):
            raise
        raise InputError(not_written(job.photo, error)) from error
    rate = f"{found.frames / max(found.seconds, 1e-9):.1f} frames/s"
    target = printable(str(next(iter(job.outputs.values()))))
    print(f"{target}: {found.frames} frames, {found.with_faces} with faces ({rate})")


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
        maps = "its label map is" if len(faceless) == 1 else "their label maps are"
        print(f"no face found in {len(faceless)} photo{'s' * (len(faceless) != 1)} ({maps} empty):")
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
        print("error: nothing was labelled: see the lines above", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_main(main, INTERRUPTED))
