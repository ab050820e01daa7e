"""Sorts photos named <person>_1.jpg and <person>_2.jpg into OUT/train/<person>/ and OUT/test/<person>/: copies."""

import re
import shutil
import sys
from pathlib import Path

from data.images import READ_SUFFIXES, shorten
from utils.cli import Parser
from utils.errors import InputError
from utils.runtime import run_main

SPLITS = {"1": "train", "2": "test"}


def main(argv: list[str] | None = None) -> int:
    cli = Parser(__doc__)
    cli.add_argument("source", type=Path, metavar="IN", help="folder of photos")
    cli.add_argument("out", type=Path, metavar="OUT", help="new folder")
    args = cli.parse_args(argv)
    if not args.source.is_dir():
        raise InputError(f"{args.source} is not a folder: give the folder of the photos")
    photos = sorted(path for path in args.source.iterdir() if path.suffix.lower() in READ_SUFFIXES)
    found = {path: re.fullmatch(r"([^.].*)_([12])", path.stem) for path in photos}
    if not any(found.values()):
        raise InputError(f"{args.source} holds no photos that are named <person>_1.jpg or <person>_2.jpg")
    if args.out.exists():
        raise InputError(f"{args.out} already exists: choose a new folder")
    for path, match in found.items():
        if match:
            folder = args.out / SPLITS[match[2]] / match[1]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / path.name)
    sorted_count = sum(map(bool, found.values()))
    print(f"{sorted_count} photos, into {args.out}/train and {args.out}/test")
    if left := [path.name for path in photos if not found[path]]:
        print(f"left out, named otherwise: {shorten(left)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
