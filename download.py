"""Download a checkpoint that the STN-iCNN authors published: ``python download.py NAME``.

Checks the SHA-256 before the file gets its name, and replaces a different file only with --force. Weights and licence
are the authors'; see ``checkpoints/manifest.json``.
"""

import logging
import sys
from pathlib import Path
from typing import NamedTuple

import pooch
import requests
import urllib3

from utils.cli import Parser
from utils.errors import InputError
from utils.files import read_json, sha256
from utils.runtime import run_main

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
MANIFEST = CHECKPOINTS / "manifest.json"
RETRIES = 2
TIMEOUT = 30  # seconds without an answer
BLOCK = 1 << 18  # bytes read at a time


class Entry(NamedTuple):
    """One file of the manifest. sha256: hexadecimal. holds: name of a network -> what it is."""

    name: str
    file: str
    url: str
    bytes: int
    sha256: str
    holds: dict[str, str]


def read_manifest() -> tuple[dict[str, Entry], str]:
    """The manifest's entries by name, and its licence note."""
    manifest = read_json(MANIFEST, "manifest")
    entries = [Entry(*(item[name] for name in Entry._fields)) for item in manifest["files"]]
    return {entry.name: entry for entry in entries}, manifest["licence"]


def download(entry: Entry, out: Path, force: bool = False) -> tuple[Path, bool]:
    """Put the entry's file into folder ``out``. Returns its path, and False if the file was there already.

    Raises InputError if the file cannot be fetched or written, if its digest differs, and if a different file of that
    name is there and ``force`` is not set.
    """
    target = out / entry.file
    if target.exists():
        if target.is_file() and sha256(target) == entry.sha256:
            return target, False
        if not target.is_file() or not force:
            raise InputError(f"{target}: a different file of this name exists; --force replaces a regular file")
    logging.getLogger("pooch").setLevel(logging.ERROR)
    registry = pooch.create(
        path=out,
        base_url="",
        registry={entry.file: f"sha256:{entry.sha256}"},
        urls={entry.file: entry.url},
        retry_if_failed=RETRIES,
    )
    try:
        registry.fetch(entry.file, downloader=pooch.HTTPDownloader(sys.stderr.isatty(), BLOCK, timeout=TIMEOUT))
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{entry.url}: cannot be fetched ({reason}); try again later") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); choose another with --out") from None
    return target, True


def main(argv: list[str] | None = None) -> int:
    cli = Parser("Download a checkpoint that the STN-iCNN authors published.")
    cli.add_argument("name", nargs="?", metavar="NAME", help="name of the checkpoint, see --list")
    cli.add_argument("--list", action="store_true", help="only list names, sizes and contents")
    cli.add_argument("--out", type=Path, default=CHECKPOINTS, metavar="DIR", help="folder to write to")
    cli.add_argument("--force", action="store_true", help="replace a different file of the same name")
    args = cli.parse_args(argv)

    entries, licence = read_manifest()
    if args.list:
        for entry in entries.values():
            holds = ", ".join(f"{key}: {what}" for key, what in entry.holds.items())
            print(f"{entry.name:<16}{entry.bytes / 2**20:6.1f} MiB  {holds}")
        print(licence)
        return 0
    if args.name not in entries:
        problem = f"no checkpoint is called {args.name!r}" if args.name else "NAME is missing"
        raise InputError(f"{problem}; choose one of {', '.join(entries)}")
    path, fetched = download(entries[args.name], args.out, args.force)
    print(f"{path}: {'downloaded' if fetched else 'already there'}, SHA-256 is right")
    if fetched:
        print(licence)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
