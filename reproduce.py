"""The whole chain for one data set: four stages, then every row of the F1 table. What is finished is skipped."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import evaluate
import train_cropper
import train_end2end
import train_stage1
import train_stage2
from utils import options, runtime
from utils.metrics import table
from utils.runtime import run_main

SCRIPTS = {"stage1": train_stage1, "cropper": train_cropper, "stage2": train_stage2, "end2end": train_end2end}
STAGES = tuple(SCRIPTS)
# Which earlier stages' weights each stage starts from, by option, and the sizes that it settles.
SOURCES = {
    "stage1": {},
    "cropper": {"--init-from": "stage1"},
    "stage2": {},
    "end2end": {"--init-from-cropper": "cropper", "--init-from-stage2": "stage2"},
}
SIZES = {"stage1": ("coarse_size",), "cropper": ("crop_size",), "stage2": ("crop_size",), "end2end": ()}
FACES = ("dataset", "partition", "face_size")  # which faces, at what size
DATA = (*FACES, "data", "cache", "max_images")
MACHINE = ("device", "workers", "seed", "amp")


def main(argv: list[str] | None = None) -> int:
    parser = options.base_parser(__doc__, splits=True)
    options.add_recipe_option(parser)
    parser.add_argument(
        "--epochs", type=int, nargs=4, metavar="N", help=f"of {', '.join(STAGES)}; default: the recipe's"
    )
    parser.add_argument("--coarse-size", type=int, metavar="N", help="side of the stretched photo, pixels")
    parser.add_argument("--crop-size", type=int, metavar="N", help="side of the crops, samples")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where runs and scores go")
    args = parser.parse_args(argv)
    options.check(args)
    runtime.start_processes(args.device)

    shared = flags(args, *DATA, *MACHINE)
    best = {stage: args.out / stage / "best.pt" for stage in STAGES}
    for k, (stage, script) in enumerate(SCRIPTS.items()):
        own = flags(args, "recipe", "batch_size", *SIZES[stage], epochs=args.epochs[k] if args.epochs else None)
        start = from_earlier(stage, best)
        script.main([*shared, *own, *start, "--resume", "--run-dir", str(args.out / stage)])
        runtime.barrier()

    separate = [str(best["cropper"]), str(best["stage2"])]
    rows = {
        "coarse mask enlarged": ([str(best["stage1"])], "none"),
        "iCNN (old cropper)": (separate, "baseline"),
        "STN-iCNN before end-to-end": (separate, "predicted"),
        "STN-iCNN": ([str(best["end2end"])], "predicted"),
        "STN-iCNN, crops on the truth": ([str(best["end2end"])], "truth"),
    }
    results = {}
    for title, (checkpoints, crops) in rows.items():
        folder = args.out / "scores" / args.split / slug(title)
        scored = is_scored(folder / "scores.json", checkpoints, args)
        runtime.barrier()  # all processes have looked before one writes
        if not scored:
            to = ["--checkpoint", *checkpoints, "--crops", crops, "--out", str(folder), "--overwrite"]
            evaluate.main([*shared, "--split", args.split, *to])
            runtime.barrier()
        results[title] = json.loads((folder / "scores.json").read_text())
    if runtime.rank() == 0:
        text = f"{args.dataset}, {args.split} split\n\n{table(results)}"
        (args.out / f"table_{args.split}.md").write_text(text + "\n")
        print("\n" + text)
    return 0


def from_earlier(stage: str, best: Mapping[str, Path]) -> list[str]:
    """The options that start a stage from the checkpoints of the stages before it."""
    return [word for flag, source in SOURCES[stage].items() for word in (flag, str(best[source]))]


def is_scored(file: Path, checkpoints: list[str], args: argparse.Namespace) -> bool:
    """Whether scores.json is there, younger than the checkpoints, and of the faces that the options name."""
    if not file.exists() or any(Path(path).stat().st_mtime > file.stat().st_mtime for path in checkpoints):
        return False
    about: dict[str, Any] = json.loads(file.read_text())
    return all(about.get(name) == getattr(args, name) for name in FACES)


def flags(args: argparse.Namespace, *names: str, **instead: object) -> list[str]:
    """Options as they were given, to hand on to another script. instead: other values; None leaves an option out."""
    values = {**{name: getattr(args, name) for name in names}, **instead}
    given = {name: value for name, value in values.items() if value is not None}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def slug(title: str) -> str:
    """A row's title as a folder name."""
    return "".join(c if c.isalnum() or c == "-" else "_" for c in title)


if __name__ == "__main__":
    sys.exit(run_main(main))
