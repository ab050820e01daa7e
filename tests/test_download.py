"""download.py: the right bytes under the right name, or one line and the older file."""

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import download
from tests.damage import little_room
from tests.fixtures import contents
from utils.errors import InputError
from utils.runtime import run_main

CONTENT = bytes(range(256)) * 4096  # 1 MiB
ENTRY = {"name": "weights", "file": "w.bin", "bytes": len(CONTENT), "holds": {}}
ENTRY["sha256"] = hashlib.sha256(CONTENT).hexdigest()
SHOWN = [("Content-Length", str(len(CONTENT)))]
Answer = tuple[int, list[tuple[str, str]], bytes]
GOOD: Answer = (200, SHOWN, CONTENT)
BAD: dict[str, Answer] = {
    "half of it": (200, SHOWN, CONTENT[:400_000]),
    "other bytes": (200, SHOWN, bytes(len(CONTENT))),
    "more and more": (200, [], CONTENT * 9),
    "not found": (404, [], b""),
    "broken chunks": (200, [("Transfer-Encoding", "chunked")], b"zz\r\n" + CONTENT),
    "a redirect to a file": (302, [("Location", "file:///etc/passwd")], b""),
    "nothing": (0, [], b""),
}


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives ``server.answer``; counts the requests."""

    def do_GET(self) -> None:
        status, headers, body = self.server.answer  # type: ignore[attr-defined]
        self.server.count += 1  # type: ignore[attr-defined]
        if status:
            self.send_response(status)
            for header in headers:
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "RETRIES", 0)
    httpd: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.answer, httpd.count = GOOD, 0
    httpd.handle_error = lambda *_: None  # the client may have gone
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def get(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls the script for the served file; extra arguments go on the command line."""
    monkeypatch.setattr(download, "MANIFEST", tmp_path / "manifest.json")
    write_manifest(f"http://127.0.0.1:{server.server_port}/w")
    return lambda *extra: download.main(["weights", "--out", str(tmp_path / "out"), *extra])


def write_manifest(url: str) -> None:
    download.MANIFEST.write_text(json.dumps({"licence": "the authors'", "files": [{**ENTRY, "url": url}]}))


def test_a_file_is_fetched_checked_named_and_not_fetched_twice(get, tmp_path, server, capsys):
    for done in ("downloaded", "already there"):
        assert get() == 0
        assert f"{done}, SHA-256 is right" in capsys.readouterr().out
        assert contents(tmp_path / "out") == {Path("w.bin"): CONTENT}
    assert server.count == 1


@pytest.mark.parametrize("name", BAD)
def test_a_different_file_is_replaced_only_when_forced_and_by_the_right_one(name, get, tmp_path, server, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "w.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match="--force"):
        get()
    server.answer = BAD[name]
    assert run_main(lambda: get("--force")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be fetched" in line
    assert len(line) < 500
    assert contents(tmp_path / "out") == {Path("w.bin"): b"mine"}
    server.answer = GOOD
    assert get("--force") == 0
    assert contents(tmp_path / "out") == {Path("w.bin"): CONTENT}


def test_a_failed_download_is_tried_again(get, server, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 1)
    server.answer = BAD["not found"]
    with pytest.raises(InputError, match="404"):
        get()
    assert server.count == 2


def test_without_a_network_with_a_full_disk_and_with_no_folder_to_write_to_it_is_one_line(get, tmp_path, server):
    with little_room(300_000), pytest.raises(InputError, match=r"out: cannot be written \(File too large"):
        get()
    assert contents(tmp_path / "out") == {}
    os.mkfifo(tmp_path / "out" / "w.bin")
    with pytest.raises(InputError, match=r"w\.bin: a different file"):
        get("--force")
    with pytest.raises(InputError, match="cannot be written"):
        get("--out", str(tmp_path / "manifest.json"))
    write_manifest("http://127.0.0.1:9/w")  # a port where nobody listens
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/w: cannot be fetched .*refused"):
        get("--out", str(tmp_path / "new"))


def test_the_list_shows_every_published_checkpoint_and_whose_they_are(capsys):
    assert download.main(["--list"]) == 0
    shown = capsys.readouterr().out
    entries, licence = download.read_manifest()
    assert [entry.bytes for entry in entries.values()] == [3365764, 48284056, 13259785, 61538410, 61544623]
    assert all(name in shown for name in ("48fb8cd4", "e0de5954", "c1f2ab1a", "before_end2end", "after_end2end"))
    assert licence in shown
    assert "authors" in licence
    with pytest.raises(InputError, match=f"choose one of {', '.join(entries)}"):
        download.main(["nobody"])
