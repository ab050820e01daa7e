"""Self-distilled labels: confident predictions replace training labels, in a folder of new PNGs.

Writes DIR/<name>.png for each training face, and DIR/relabel.json with the pixels of each label before and after. The
data set is not changed; train_deeplab.py --train-labels DIR trains on the new maps, and its --self-distill does all of
it in one run.
"""

import sys
from pathlib import Path

from data.loaders import open_faces
from data.relabelled import RECORD
from models.loading import load_parser
from scoring import options
from training.relabel import BATCH_SIZE, INSIDE, Rule, add_rule_options, relabel, table
from utils import distributed, files
from utils.errors import InputError
from utils.runtime import run_main

INTERRUPTED = "interrupted: the label maps so far are complete, and the same command continues with the others"


def main(argv: list[str] | None = None) -> int:
    cli = options.base_parser(__doc__, batch_size=BATCH_SIZE)
    group = cli.add_argument_group("relabelling")
    options.add_checkpoint_option(group)
    add_rule_options(group)
    group.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the label maps")
    args = cli.parse_args(argv)
    options.check(args)
    rule, data, machine = Rule(args.threshold, args.rare), options.face_data(args), options.machine(args)
    files.require_outside("--out", args.out, data.root, INSIDE)
    checkpoints = options.checkpoints(args)
    labels = load_parser(checkpoints).labels
    if labels.name != data.labels.name:
        names = ", ".join(map(str, checkpoints))
        raise InputError(
            f"{names} labels in {labels.name}, the data set in {data.labels.name}: choose one that fits it"
        )
    distributed.start_processes(machine.device)
    with distributed.explain_lost():
        faces = open_faces(data, "train", labels, threads=machine.threads)
        record = relabel(checkpoints, faces, args.out, rule, machine, args.batch_size)
    if distributed.rank() == 0:
        print(f"\n{table(record)}\n{record['changed']} pixels of {len(faces)} faces changed")
        print(f"written: {args.out}, {RECORD}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main, INTERRUPTED))
