"""Download a checkpoint that the STN-iCNN authors published: ``python download.py NAME``.

Continues a partial download, checks the SHA-256 before the file gets its name, and replaces a different file only
with --force. Weights and licence are the authors'; see ``checkpoints/manifest.json``.
"""

import http.client
import os
import re
import stat
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tqdm import tqdm

from utils.cli import Parser
from utils.errors import InputError
from utils.files import read_json, sha256
from utils.runtime import run_main

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
BLOCK = 1 << 18  # bytes read at a time
TIMEOUT = 30  # seconds without an answer
TEXTS = ("name", "file", "url", "sha256")  # what every entry needs
MOST_BYTES = 2**40
LONGEST_NAME = 250  # bytes; ".part" follows
REDIRECTS = (301, 302, 303, 307, 308)


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
    manifest = read_json(path, "manifest")
    listed = manifest.get("files")
    if not isinstance(listed, list) or not listed:
        raise InputError(f"{path}: not a manifest of checkpoints (it lists no files); name one with --manifest")
    entries: dict[str, Entry] = {}
    for k, item in enumerate(listed, 1):
        entry = _entry(item, f"{path}: entry {k}")
        if entry.name in entries:
            raise InputError(f"{path}: two entries are called {entry.name!r}; rename one")
        entries[entry.name] = entry
    return entries, str(manifest.get("licence", ""))


def _entry(item: Any, where: str) -> Entry:
    """An entry of the manifest, checked: nothing in it leads out of the output folder or away from the web.

    where: the file and the entry, for messages. Raises InputError.
    """
    if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in TEXTS):
        raise InputError(f"{where} needs {', '.join(TEXTS)}, each of them a text")
    name, file, url, digest = item["name"], item["file"], item["url"], item["sha256"].lower()
    if not name.isprintable() or not name:
        raise InputError(f"{where}: {name!r} is no name")
    if file != Path(file).name or file in ("", "..") or not file.isprintable() or len(file.encode()) > LONGEST_NAME:
        raise InputError(f"{where}: {file!r} is not a plain file name")
    if problem := _url_problem(url):
        raise InputError(f"{where}: {url!r} is not an http(s) address ({problem})")
    size, holds = item.get("bytes"), item.get("holds", {})
    if type(size) is not int or not 0 < size <= MOST_BYTES:
        raise InputError(f"{where}: its bytes must be a whole number between 1 and {MOST_BYTES}, not {size!r}")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise InputError(f"{where}: its sha256 is not 64 hexadecimal digits")
    if not isinstance(holds, dict) or not all(isinstance(what, str) for what in holds.values()):
        raise InputError(f"{where}: holds must be an object of texts")
    return Entry(name, file, url, size, digest, holds)


def _url_problem(url: str) -> str:
    """What keeps a text from being the address of a file on the web; empty where nothing does."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return "it holds characters that must be written as %xx"
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises for what is no number
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "it must begin with https:// or http:// and a host"
    return ""


def fetch(entry: Entry, part: Path) -> None:
    """Download ``entry.url`` into ``part``, from where an earlier attempt stopped if the server allows it.

    Starts again from the first byte if the server ignores or refuses the range. Raises InputError if the server
    cannot be reached, answers with an error or stops early (what was received stays in ``part``), and if writing fails.
    """
    # torch.hub.download_url_to_file cannot do this: it neither continues a download nor gives up on a silent server.
    have = _received(part)
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
        reason = "redirects without end or to no address" if error.code in REDIRECTS else _one_line(error.reason)
        raise InputError(f"{entry.url}: the server answered {error.code} {reason}; try again later") from None
    except (ValueError, http.client.InvalidURL) as error:  # of a redirect, or of a proxy in the environment
        raise InputError(f"{entry.url}: leads to a malformed address ({_one_line(error)}); try again later") from None
    except (OSError, http.client.HTTPException) as error:
        reason = _one_line(getattr(error, "reason", None) or error)
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
    declared = response.length  # None where the header is missing or no number
    end = entry.bytes if declared is None else start + declared
    size, problem = start, ""
    with (
        _open_part(part, append=start > 0) as file,
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
                problem = f" ({_one_line(error)})"
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


def _received(part: Path) -> int:
    """How many bytes of the file are there from an earlier attempt.

    Raises InputError for what is no file of its own: writing through a link would overwrite another file.
    """
    try:
        status = part.lstat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise InputError(f"{part}: is a link, or no file; remove it, or choose another folder with --out")
    return status.st_size


def _open_part(part: Path, append: bool) -> BinaryIO:
    """Open the partial file for writing, never through a link. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(part, flags | (os.O_APPEND if append else os.O_TRUNC), 0o666), "wb")


def _one_line(reason: object) -> str:
    return " ".join(str(reason).split())[:200]


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
