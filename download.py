"""Fetch a checkpoint that the STN-iCNN authors published: ``python download.py NAME``.

Resumes a partial download, checks size and SHA-256 before the file gets its name, and never replaces
a different file unasked. Weights and their licence are the authors'; see ``checkpoints/manifest.json``.
"""

import hashlib
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from utils.errors import InputError
from utils.options import Parser

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
BLOCK = 1 << 18  # bytes read at a time
TIMEOUT = 30  # seconds without an answer


class Entry(NamedTuple):
    """One file of the manifest; ``sha256`` in lower-case hexadecimal."""

    name: str
    file: str
    url: str
    bytes: int
    sha256: str
    holds: dict[str, str]


def read_manifest(path: Path) -> tuple[dict[str, Entry], str]:
    """The manifest's entries by name, and its licence note. Raises InputError if it is not such a file."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        entries = [Entry(*(item[field] for field in Entry._fields)) for item in manifest["files"]]
        licence = str(manifest.get("licence", ""))
    except OSError as error:
        raise InputError(f"{path}: cannot read the manifest ({error.strerror}); name one with --manifest") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a manifest of checkpoints ({type(error).__name__}: {error})") from None
    for entry in entries:
        plain = isinstance(entry.file, str) and entry.file == Path(entry.file).name and entry.file not in ("", "..")
        if not plain or not str(entry.url).startswith(("https://", "http://")) or not isinstance(entry.bytes, int):
            raise InputError(f"{path}: entry {entry.name!r} needs a plain file name, an http(s) url and a byte count")
    return {entry.name: entry for entry in entries}, licence


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def fetch(entry: Entry, part: Path) -> None:
    """Download ``entry.url`` into ``part``, going on where an earlier try stopped if the server can.

    Starts anew when the server ignores or refuses the range. Raises InputError when the server cannot be
    reached, answers with an error or breaks off (what came stays in ``part``), and when writing fails.
    """
    have = part.stat().st_size if part.exists() else 0
    if have == entry.bytes:
        return
    if have > entry.bytes:
        part.unlink()
        have = 0
    request = urllib.request.Request(entry.url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # range not satisfiable: the server's file is another one
            part.unlink()
            return fetch(entry, part)
        raise InputError(f"{entry.url}: the server answered {error.code} {error.reason}; try again later") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"{entry.url}: cannot reach the server ({reason}); is this machine online?") from None

    with response:
        resumed = have > 0 and response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            return fetch(entry, part)
        if not resumed and response.status != 200:
            raise InputError(f"{entry.url}: the server answered {response.status} instead of the file; try again later")
        try:
            _save(response, entry, part, have if resumed else 0)
        except OSError as error:
            raise InputError(f"{part}: cannot write ({error.strerror}); make room there or choose --out") from None


def _save(response: http.client.HTTPResponse, entry: Entry, part: Path, start: int) -> None:
    """Append the answer to ``part`` from byte ``start`` on. An OSError that leaves here is one of writing."""
    declared = response.headers.get("Content-Length")
    end = start + int(declared) if declared else entry.bytes
    size, trouble = start, ""
    with (
        part.open("ab" if start else "wb") as file,
        tqdm(
            total=entry.bytes,
            initial=start,
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            desc=entry.name,
            disable=None,
        ) as bar,
    ):
        while size <= entry.bytes:  # a longer answer is another file: the digest will tell
            try:
                block = response.read(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                trouble = f" ({error})"
                break
            if not block:
                break
            file.write(block)
            size += len(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if size < min(end, entry.bytes) or (trouble and size < entry.bytes):
        raise InputError(
            f"{entry.url}: broke off after {size} of {entry.bytes} bytes{trouble}; the same command goes on from there"
        )


def download(entry: Entry, out: Path, force: bool = False) -> tuple[Path, bool]:
    """Put the entry's file into folder ``out``; returns its path and whether anything had to be fetched.

    Raises InputError as ``fetch`` does, when another file of that name is there and ``force`` is not set,
    and when the digest differs (the partial file is deleted then).
    """
    target, part = out / entry.file, out / f"{entry.file}.part"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if not target.is_file():
                raise InputError(f"{target}: in the way and not a file; move it or choose another folder with --out")
            if sha256_of(target) == entry.sha256:
                return target, False
            if not force:
                raise InputError(f"{target}: another file of this name is there; --force replaces it")
        fetch(entry, part)
        size, got = part.stat().st_size, sha256_of(part)
        if got != entry.sha256:
            part.unlink()
            raise InputError(
                f"{entry.url}: SHA-256 differs, partial file deleted: expected {entry.sha256} ({entry.bytes} bytes), "
                f"got {got} ({size} bytes); try again"
            )
        os.replace(part, target)
    except OSError as error:
        raise InputError(f"{error.filename or out}: {error.strerror}; choose another folder with --out") from None
    return target, True


def main(argv: list[str] | None = None) -> int:
    parser = Parser("Fetch a checkpoint that the STN-iCNN authors published.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="which one; --list shows them")
    parser.add_argument("--list", action="store_true", help="show names, sizes and contents, fetch nothing")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, metavar="DIR", help="folder to write to (checkpoints)")
    parser.add_argument("--force", action="store_true", help="replace a different file of the same name")
    parser.add_argument(
        "--manifest",
        type=Path,
        default=CHECKPOINTS / "manifest.json",
        metavar="FILE",
        help="JSON list of the files (checkpoints/manifest.json)",
    )
    args = parser.parse_args(argv)

    entries, licence = read_manifest(args.manifest)
    if args.list:
        for entry in entries.values():
            holds = ", ".join(f"{key}: {what}" for key, what in entry.holds.items())
            print(f"{entry.name:<16}{entry.bytes / 2**20:6.1f} MiB  {holds}")
        print(licence)
        return 0
    if args.name not in entries:
        problem = f"no checkpoint is called {args.name!r}" if args.name else "no checkpoint named"
        raise InputError(f"{problem}; choose one of {', '.join(entries)}")
    path, fetched = download(entries[args.name], args.out, args.force)
    print(f"{path}: {'downloaded, SHA-256 is right' if fetched else 'already there, SHA-256 is right'}")
    if fetched:
        print(licence)
    return 0


if __name__ == "__main__":
    from utils.runtime import run_main

    sys.exit(run_main(main))
