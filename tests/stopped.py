"""Trains stage 1 as its script does, until a signal ends it at the first batch of the second epoch; of two processes,
the second: ``python -m tests.stopped 9 --dataset …``."""

import os
import signal
import sys

import train_stage1
from data.view import Augmentation
from utils.runtime import run_main

view = Augmentation.view


def view_or_stop(augmentation, batch):
    if batch.keys_B3[0, 1] == 1 and os.environ.get("RANK") != "0":
        signal.raise_signal(int(sys.argv[1]))
    return view(augmentation, batch)


if __name__ == "__main__":
    Augmentation.view = view_or_stop
    sys.exit(run_main(lambda: train_stage1.main(sys.argv[2:])))
