"""Score a face parser on a split, or any label maps in a folder: the paper's F1, the strict F1 and other measures."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from data.labels import LABEL_SETS, NINE, ORDERS, read_ids
from models.stn_icnn.model import CROPS
from scoring import options
from scoring.evaluation import BATCH_SIZE, Evaluation, Request, score_folders, score_model
from scoring.files import save, tables, written_before
from scoring.metrics import CHALLENGE_FILES, misnamed
from utils import distributed
from utils.errors import InputError
from utils.runtime import Machine, run_main


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    machine = options.machine(args)
    distributed.start_processes(machine.device)
    with distributed.explain_lost():
        evaluation = score(args, machine)
    if distributed.rank() > 0:
        return 0
    print(f"{tables(evaluation)}\n{len(evaluation.names)} faces")
    if absent := evaluation.scores()["absent"]:
        print(f"no score, since neither in the truth nor predicted: {', '.join(absent)}")
    if moved := misnamed(evaluation.matrices_NKK.sum(0), evaluation.labels):
        print(f"note: labels are exchanged ({', '.join(moved)}): do --ids and --truth-ids fit the files?")
    if args.out:
        result = save(args.out, evaluation, args.worst)
        pictures = f", worst/ ({len(result['worst'])})" if result["worst"] else ""
        challenge = "".join(f", {name}" for name in CHALLENGE_FILES if evaluation.challenge())
        print(f"written: {args.out / 'scores.json'}, scores.csv, scores.md{challenge}{pictures}")
    return 0


def score(args: argparse.Namespace, machine: Machine) -> Evaluation:
    """What the options ask for. Raises InputError, see ``score_folders`` and ``score_model``."""
    if args.predictions:
        labels = args.labels or NINE
        return score_folders(args.predictions, args.truth, args.ids, args.truth_ids, machine, args.max_images, labels)
    paths, data = options.checkpoints(args), options.face_data(args)
    return score_model(Request(paths, data, machine, args.split, args.crops, args.mirror, args.batch_size))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    cli = options.base_parser(__doc__, splits=True, batch_size=BATCH_SIZE)
    group = cli.add_argument_group("what is scored")
    options.add_checkpoint_option(group)
    group.add_argument(
        "--crops",
        choices=CROPS,
        default="predicted",
        help="for STN-iCNN: windows from the localizer, from the old cropper, or around the true parts; "
        "none: the upsampled rough mask",
    )
    options.add_mirror_option(group)
    group.add_argument(
        "--predictions", type=Path, metavar="DIR", help="score these label PNGs of any parser instead of a checkpoint"
    )
    group.add_argument("--truth", type=Path, metavar="DIR", help="ground-truth label PNGs of the same names and sizes")
    group.add_argument(
        "--ids",
        metavar="IDS",
        help=f"label set of --predictions: {', '.join((*LABEL_SETS, *ORDERS))}, or a .json file with the names by id; "
        "default: that of --labels, or nine",
    )
    group.add_argument("--truth-ids", metavar="IDS", help="label set of --truth; default: that of --ids")
    group = cli.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="DIR", help="folder for scores.json, scores.csv and scores.md")
    group.add_argument("--overwrite", action="store_true", help="replace the scores in --out")
    group.add_argument("--worst", type=int, default=0, metavar="N", help="also save pictures of the N worst faces")
    args = cli.parse_args(argv)
    options.check(args)
    if (args.predictions is None) != (args.truth is None):
        raise InputError("--predictions and --truth must be given together")
    of_parsers = {"checkpoint": args.checkpoint, "mirror": args.mirror, "crops": args.crops != "predicted"}
    of_parsers |= {name: getattr(args, name) for name in ("data", "partition", "face_size")}
    if args.predictions and (unused := [f"--{name.replace('_', '-')}" for name, given in of_parsers.items() if given]):
        raise InputError(
            f"--predictions scores existing label maps, so {', '.join(unused)} has no effect: leave it out"
        )
    if not args.predictions and (args.truth_ids or args.ids):
        raise InputError("--ids and --truth-ids are for --predictions: leave them out")
    if args.worst < 0:
        raise InputError(f"--worst {args.worst}: must be at least 0")
    if args.worst and not args.out:
        raise InputError("--worst saves pictures in --out: add --out DIR")
    if args.out and not args.overwrite and (there := written_before(args.out)):
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        first = there[0].relative_to(args.out)
        raise InputError(f"{args.out} already holds {first}{more}: choose another --out, or add --overwrite")
    texts = args.ids, args.truth_ids or args.ids
    args.ids, truth_ids = (read_ids(text) if text else args.labels or NINE for text in texts)
    args.truth_ids = replace(truth_ids, ignores=truth_ids.ignores or args.ignore_255)
    return args


if __name__ == "__main__":
    sys.exit(run_main(main))
