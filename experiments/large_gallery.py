"""The indexes of retrieval.search on a gallery of random directions: time, memory, whether the five are the same."""

import json
import os
import sys
from pathlib import Path

import numpy as np

from retrieval.index import INDEXES
from retrieval.network import EMBEDDING
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import Clock, run_main


def random_directions(count: int, seed: int) -> np.ndarray:
    """float32 (count, 512), block by block: what is freed here would hide what an index takes."""
    rng, rows_NE = np.random.default_rng(seed), np.empty((count, EMBEDDING), np.float32)
    for start in range(0, count, 10_000):
        block = rng.standard_normal((min(10_000, count - start), EMBEDDING), dtype=np.float32)
        rows_NE[start : start + 10_000] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return rows_NE


def memory() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    cli.add_argument("--index", choices=tuple(INDEXES), default="faiss", help="which of them")
    cli.add_argument("--gallery", type=int, default=1_000_000, metavar="N", help="directions")
    cli.add_argument("--queries", type=int, default=200, metavar="N", help="directions to look for")
    args = cli.parse_args(argv)
    if args.gallery < 5 or args.queries < 1:
        raise InputError("--gallery must be at least 5 and --queries at least 1")
    gallery_GE, queries_QE = random_directions(args.gallery, 0), random_directions(args.queries, 1)
    clock, before = Clock(), memory()
    find = INDEXES[args.index](gallery_GE)
    built_s, grown = clock.lap(), memory() - before  # nothing was freed before, which the index might take again
    found_Q5 = find(queries_QE)
    took_s = clock.lap()
    truth_Q5 = INDEXES["exact"](gallery_GE)(queries_QE)
    row = {
        "index": args.index,
        "build_s": built_s,
        "ms_a_query": round(1000 * took_s / args.queries, 2),
        "index_MiB": grown >> 20,
        "same_five_in_order": float((found_Q5 == truth_Q5).all(1).mean()),
        "same_nearest": float((found_Q5[:, 0] == truth_Q5[:, 0]).mean()),
    }
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
