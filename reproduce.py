"""The whole chain for one data set: four stages, then every row of the F1 table. What is finished is skipped."""

import argparse
import json
import sys
from pathlib import Path

import evaluate
import train_cropper
import train_end2end
import train_stage1
import train_stage2
from utils import options, runtime
from utils.metrics import table
from utils.runtime import run_main

STAGES = ("stage1", "cropper", "stage2", "end2end")


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

    shared = flags(args, "dataset", "data", "partition", "face_size", "cache", "max_images")
    shared += flags(args, "device", "workers", "seed", "amp")
    training = [*shared, *flags(args, "recipe", "batch_size"), "--resume"]
    best = {stage: args.out / stage / "best.pt" for stage in STAGES}
    coarse, crop = flags(args, "coarse_size"), flags(args, "crop_size")
    chain = {
        "stage1": (train_stage1.main, coarse),
        "cropper": (train_cropper.main, ["--init-from", str(best["stage1"]), *crop]),
        "stage2": (train_stage2.main, crop),
        "end2end": (
            train_end2end.main,
            ["--init-from-cropper", str(best["cropper"]), "--init-from-stage2", str(best["stage2"])],
        ),
    }
    for k, (stage, (train, own)) in enumerate(chain.items()):
        epochs = ["--epochs", str(args.epochs[k])] if args.epochs else []
        train([*training, *own, *epochs, "--run-dir", str(args.out / stage)])
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
        newer = is_newer(folder / "scores.json", checkpoints)
        runtime.barrier()  # all processes have looked before one writes
        if not newer:
            to = ["--checkpoint", *checkpoints, "--crops", crops, "--out", str(folder), "--overwrite"]
            evaluate.main([*shared, "--split", args.split, *to])
            runtime.barrier()
        results[title] = json.loads((folder / "scores.json").read_text())
    if runtime.rank() == 0:
        text = f"{args.dataset}, {args.split} split\n\n{table(results)}"
        (args.out / f"table_{args.split}.md").write_text(text + "\n")
        print("\n" + text)
    return 0


def is_newer(file: Path, sources: list[str]) -> bool:
    """Whether a file is there and younger than all of its sources."""
    return file.exists() and file.stat().st_mtime >= max(Path(source).stat().st_mtime for source in sources)


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
