"""Download a checkpoint that the STN-iCNN authors published: ``python download.py NAME``.

Checks the SHA-256 before the file gets its name, and replaces a different file only with --force. Weights and licence
are the authors'; see ``checkpoints/manifest.json``.
"""

import logging
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pooch
import requests
import urllib3
from tqdm import tqdm

from utils.cli import Parser
from utils.errors import InputError
from utils.files import read_json, sha256
from utils.runtime import run_main

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
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


class Progress(tqdm):
    """A progress bar that ends a download of more bytes than it should have."""

    def update(self, n: float | None = 1) -> bool | None:
        if self.n > self.total:
            raise ValueError("the server sends more bytes than the file has")
        return super().update(n)


def read_manifest(path: Path) -> tuple[dict[str, Entry], str]:
    """The manifest's entries by name, and its licence note. Raises InputError for any other file."""
    manifest = read_json(path, "manifest")
    listed = manifest.get("files")
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path}: not a manifest of checkpoints (it lists no files); give one with --manifest")
    entries = [_entry(item, f"{path}: entry {k}") for k, item in enumerate(listed, 1)]
    return {entry.name: entry for entry in entries}, str(manifest.get("licence", ""))


def _entry(item: Any, where: str) -> Entry:
    """An entry of the manifest; nothing in it leads out of the output folder. Raises InputError."""
    held = {"holds": {}, **item} if isinstance(item, dict) else {}
    types = {"name": str, "file": str, "url": str, "bytes": int, "sha256": str, "holds": dict}
    if wrong := [key for key, kind in types.items() if type(held.get(key)) is not kind]:
        raise InputError(f"{where}: its {wrong[0]} is missing or no {types[wrong[0]].__name__}")
    entry = Entry(**{key: held[key] for key in types})
    if not re.fullmatch(r"[\w-][\w.-]{0,199}", entry.file):
        raise InputError(f"{where}: {entry.file!r} is not a plain file name")
    if not re.fullmatch(r"https?://[!-~]+", entry.url):
        raise InputError(f"{where}: {entry.url!r} is not an http(s) address")
    if not re.fullmatch("[0-9a-f]{64}", entry.sha256):
        raise InputError(f"{where}: its sha256 is not 64 hexadecimal digits")
    return entry


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
    bar = Progress(total=entry.bytes, unit="B", unit_scale=True, unit_divisor=1024, desc=entry.name, disable=None)
    registry = pooch.create(
        path=out,
        base_url="",
        registry={entry.file: f"sha256:{entry.sha256}"},
        urls={entry.file: entry.url},
        retry_if_failed=RETRIES,
    )
    try:
        registry.fetch(entry.file, downloader=pooch.HTTPDownloader(bar, BLOCK, timeout=TIMEOUT))
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{entry.url}: cannot be fetched ({reason}); try again later") from None
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); choose another with --out") from None
    finally:
        bar.close()
    return target, True


def main(argv: list[str] | None = None) -> int:
    cli = Parser("Download a checkpoint that the STN-iCNN authors published.")
    cli.add_argument("name", nargs="?", metavar="NAME", help="which checkpoint; --list shows the names")
    cli.add_argument("--list", action="store_true", help="show names, sizes and contents, and download nothing")
    cli.add_argument("--out", type=Path, default=CHECKPOINTS, metavar="DIR", help="folder to write to")
    cli.add_argument("--force", action="store_true", help="replace a different file of the same name")
    cli.add_argument(
        "--manifest",
        type=Path,
        default=CHECKPOINTS / "manifest.json",
        metavar="FILE",
        help="JSON list of the files",
    )
    args = cli.parse_args(argv)

    entries, licence = read_manifest(args.manifest)
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
