"""Download a checkpoint that the STN-iCNN authors published: ``python download.py NAME``.

Continues a partial download, checks the SHA-256 before the file gets its name, and replaces a different file only
with --force. Weights and licence are the authors'; see ``checkpoints/manifest.json``.
"""

import http.client
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from utils.cli import Parser
from utils.errors import InputError
from utils.files import sha256
from utils.runtime import run_main

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
BLOCK = 1 << 18  # bytes read at a time
TIMEOUT = 30  # seconds without an answer


class Entry(NamedTuple):
    """One file of the manifest. sha256: in lower-case hexadecimal. holds: name of a network -> what it is."""

    name: str
    file: str
    url: str
    bytes: int
    sha256: str
    holds: dict[str, str]


def read_manifest(path: Path) -> tuple[dict[str, Entry], str]:
    """The manifest's entries by name, and its licence note. Raises InputError for any other file."""
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


def fetch(entry: Entry, part: Path) -> None:
    """Download ``entry.url`` into ``part``, from where an earlier attempt stopped if the server allows it.

    Starts again from the first byte if the server ignores or refuses the range. Raises InputError if the server
    cannot be reached, answers with an error or stops early (what was received stays in ``part``), and if writing fails.
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
        if error.code == 416 and have:  # range not satisfiable: the server's file is a different one
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
    """Append the response to ``part`` from byte ``start`` on. Raises OSError only if writing fails."""
    declared = response.headers.get("Content-Length")
    end = start + int(declared) if declared else entry.bytes
    size, problem = start, ""
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
        while size <= entry.bytes:  # a longer response is a different file: the digest will differ
            try:
                block = response.read(BLOCK)
            except (OSError, http.client.HTTPException) as error:
                problem = f" ({error})"
                break
            if not block:
                break
            file.write(block)
            size += len(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if size < min(end, entry.bytes) or (problem and size < entry.bytes):
        raise InputError(
            f"{entry.url}: broke off after {size} of {entry.bytes} bytes{problem}; run the same command to continue"
        )


def download(entry: Entry, out: Path, force: bool = False) -> tuple[Path, bool]:
    """Put the entry's file into folder ``out``. Returns its path, and False if the file was there already.

    Raises InputError as ``fetch`` does, if a different file of that name is there and ``force`` is not set,
    and if the digest differs (the partial file is then deleted).
    """
    target, part = out / entry.file, out / f"{entry.file}.part"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if not target.is_file():
                raise InputError(f"{target}: exists and is not a file; move it or choose another folder with --out")
            if sha256(target) == entry.sha256:
                return target, False
            if not force:
                raise InputError(f"{target}: a different file of this name exists; --force replaces it")
        fetch(entry, part)
        size, got = part.stat().st_size, sha256(part)
        if got != entry.sha256:
            part.unlink()
            raise InputError(
                f"{entry.url}: SHA-256 differs, partial file deleted: expected {entry.sha256} ({entry.bytes} bytes), "
                f"got {got} ({size} bytes); try again"
            )
        os.replace(part, target)  # the next attempt continues the partial file, so its name is not a random one
    except OSError as error:
        raise InputError(f"{error.filename or out}: {error.strerror}; choose another folder with --out") from None
    return target, True


def main(argv: list[str] | None = None) -> int:
    parser = Parser("Download a checkpoint that the STN-iCNN authors published.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="which checkpoint; --list shows the names")
    parser.add_argument("--list", action="store_true", help="show names, sizes and contents, and download nothing")
    parser.add_argument("--out", type=Path, default=CHECKPOINTS, metavar="DIR", help="folder to write to")
    parser.add_argument("--force", action="store_true", help="replace a different file of the same name")
    parser.add_argument(
        "--manifest",
        type=Path,
        default=CHECKPOINTS / "manifest.json",
        metavar="FILE",
        help="JSON list of the files",
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
        problem = f"no checkpoint is called {args.name!r}" if args.name else "NAME is missing"
        raise InputError(f"{problem}; choose one of {', '.join(entries)}")
    path, fetched = download(entries[args.name], args.out, args.force)
    print(f"{path}: {'downloaded' if fetched else 'already there'}, SHA-256 is right")
    if fetched:
        print(licence)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
