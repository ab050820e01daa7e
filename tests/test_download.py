import hashlib
import http.server
import json
import os
import re
import socket
import threading

import pytest

import download
from tests.test_checkpoint import little_room
from utils.errors import InputError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.content``; honours Range if ``server.ranges``; stops after ``server.stop_after`` bytes."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append(asked)
        if server.location:
            self.send_response(302)
            self.send_header("Location", server.location)
            return self.end_headers()
        if server.status != 200:
            return self.send_error(server.status, server.reason)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1)) if asked and server.ranges else 0
        if start > len(server.content):
            return self.send_error(416)
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            shown = start if server.honest else 0
            self.send_header("Content-Range", f"bytes {shown}-{len(server.content) - 1}/{len(server.content)}")
        if server.length:
            self.send_header("Content-Length", str(len(body)) if server.length is True else server.length)
        self.end_headers()
        self.wfile.write(body[: server.stop_after])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content, httpd.ranges, httpd.honest, httpd.length, httpd.status = CONTENT, True, True, True, 200
    httpd.stop_after, httpd.requests, httpd.location, httpd.reason = None, [], None, None
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def write_manifest(folder, port, **changes):
    entry = {
        "name": "weights",
        "file": "weights.bin",
        "url": f"http://127.0.0.1:{port}/weights.bin",
        "bytes": len(CONTENT),
        "sha256": SHA256,
        "holds": {"model1": "coarse iCNN"},
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps({"licence": "The weights are the authors'.", "files": [entry | changes]}))
    return path


@pytest.fixture
def get(server, tmp_path):
    """Calls the script for the served file; extra arguments go on the command line."""
    manifest = write_manifest(tmp_path, server.server_port)
    return lambda *extra: download.main(
        ["weights", "--out", str(tmp_path / "out"), "--manifest", str(manifest), *extra]
    )


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_checked_and_named(get, out, server, capsys):
    out.rmdir()
    assert get() == 0
    assert names(out) == ["weights.bin"]
    assert (out / "weights.bin").read_bytes() == CONTENT
    assert server.requests == [None]
    assert "SHA-256 is right" in capsys.readouterr().out


def test_a_file_already_there_is_said_so_and_not_fetched(get, out, server, capsys):
    (out / "weights.bin").write_bytes(CONTENT)
    assert get() == 0
    assert server.requests == []
    assert "already there" in capsys.readouterr().out


def test_a_partial_file_is_resumed_where_it_stopped(get, out, server):
    (out / "weights.bin.part").write_bytes(CONTENT[:300_000])
    assert get() == 0
    assert server.requests == ["bytes=300000-"]
    assert (out / "weights.bin").read_bytes() == CONTENT
    assert names(out) == ["weights.bin"]


def test_a_server_without_ranges_makes_the_download_start_anew(get, out, server):
    server.ranges = False
    (out / "weights.bin.part").write_bytes(CONTENT[:300_000])
    assert get() == 0
    assert (out / "weights.bin").read_bytes() == CONTENT


def test_a_server_that_sends_another_range_makes_the_download_start_anew(get, out, server):
    server.honest = False
    (out / "weights.bin.part").write_bytes(CONTENT[:300_000])
    assert get() == 0
    assert server.requests == ["bytes=300000-", None]
    assert (out / "weights.bin").read_bytes() == CONTENT


def test_a_server_that_sends_a_part_unasked_is_refused(get, server):
    server.status = 206
    with pytest.raises(InputError, match="answered 206"):
        get()
    assert server.requests == [None]


def test_a_complete_partial_file_needs_no_request(get, out, server):
    (out / "weights.bin.part").write_bytes(CONTENT)
    assert get() == 0
    assert server.requests == []
    assert names(out) == ["weights.bin"]


def test_a_partial_file_that_is_too_long_is_fetched_anew(get, out, server):
    (out / "weights.bin.part").write_bytes(CONTENT + b"more")
    assert get() == 0
    assert server.requests == [None]
    assert (out / "weights.bin").read_bytes() == CONTENT


def test_a_range_beyond_the_servers_file_ends_with_the_digest_message(get, out, server):
    server.content = CONTENT[:100]
    (out / "weights.bin.part").write_bytes(CONTENT[:300_000])
    with pytest.raises(InputError, match="SHA-256 differs"):
        get()
    assert server.requests == ["bytes=300000-", None]
    assert names(out) == []


@pytest.mark.parametrize("length", [True, False])
def test_a_download_that_breaks_off_is_resumed_by_the_same_command(get, out, server, length):
    server.stop_after, server.length = 400_000, length  # with no length, only the manifest knows the size
    with pytest.raises(InputError, match=f"broke off after 400000 of {len(CONTENT)} bytes") as caught:
        get()
    assert "\n" not in str(caught.value)
    assert names(out) == ["weights.bin.part"]
    server.stop_after = None
    assert get() == 0
    assert server.requests == [None, "bytes=400000-"]
    assert (out / "weights.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", b"version https://git-lfs", CONTENT * 3])
def test_another_file_on_the_server_is_refused_with_both_digests(get, out, server, content):
    server.content = content
    with pytest.raises(InputError) as caught:
        get()
    line = str(caught.value)
    assert f"expected {SHA256}" in line
    assert re.search(r"got [0-9a-f]{64}", line)
    assert "\n" not in line
    assert names(out) == []


def test_a_damaged_partial_file_is_found_out_and_deleted(get, out):
    (out / "weights.bin.part").write_bytes(b"x" * 300_000)
    with pytest.raises(InputError, match="SHA-256 differs"):
        get()
    assert names(out) == []
    assert get() == 0


def test_a_different_file_is_replaced_only_when_forced_and_only_by_the_right_one(get, out, server):
    (out / "weights.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match="--force"):
        get()
    assert server.requests == []
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match="SHA-256 differs"):
        get("--force")
    assert (out / "weights.bin").read_bytes() == b"mine"
    server.content = CONTENT
    assert get("--force") == 0
    assert (out / "weights.bin").read_bytes() == CONTENT


def test_a_machine_that_is_offline_gets_one_clear_line(tmp_path, out, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        manifest = write_manifest(tmp_path, closed.getsockname()[1])
        (out / "weights.bin.part").write_bytes(CONTENT[:10])
        with pytest.raises(InputError, match=r"cannot reach the server .*online") as caught:
            download.main(["weights", "--out", str(out), "--manifest", str(manifest)])
    assert "\n" not in str(caught.value)
    assert names(out) == ["weights.bin.part"]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_an_http_error_is_told_with_its_number(get, server, status):
    server.status = status
    with pytest.raises(InputError, match=f"answered {status}"):
        get()


@pytest.mark.parametrize("length", ["soon", "-5", "1e6", " ", "99999999999999999999"])
def test_a_content_length_that_is_no_number_or_too_large_does_no_harm(get, out, server, length):
    server.length = length
    assert get() == 0
    assert (out / "weights.bin").read_bytes() == CONTENT


def test_a_content_length_that_is_too_small_is_another_file(get, out, server):
    server.length = "3"
    with pytest.raises(InputError, match="SHA-256 differs"):
        get()
    assert names(out) == []


def test_redirects_without_end_are_one_line(get, server):
    server.location = "/weights.bin"
    with pytest.raises(InputError, match="answered 302 redirects without end") as caught:
        get()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "location",
    [
        *("http://[::1", "http://127.0.0.1:port/", "file:///etc/passwd", "http:///x", "/\xe9"),
        f"http://{'a' * 70}.org/",
    ],
)
def test_a_redirect_to_a_bad_address_is_one_line(get, out, server, location):
    server.location = location
    with pytest.raises(InputError) as caught:
        get()
    assert "\n" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
    assert names(out) == []


def test_an_error_s_words_stay_on_one_line(get, server):
    server.status, server.reason = 503, "Busy\r\n X: y"
    with pytest.raises(InputError, match="answered 503") as caught:
        get()
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_in_one_line(get, out):
    with little_room(300_000), pytest.raises(InputError, match=r"cannot write \(.*\); make room") as caught:
        get()
    assert "\n" not in str(caught.value)
    assert names(out) == ["weights.bin.part"]


@pytest.mark.parametrize("make", ["symlink_to", "hardlink_to"])
def test_a_link_in_the_place_of_the_partial_file_is_not_written_through(get, out, tmp_path, make):
    (tmp_path / "mine").write_bytes(b"mine")
    getattr(out / "weights.bin.part", make)(tmp_path / "mine")
    with pytest.raises(InputError, match=r"weights.bin.part: is a link, or no file; remove it"):
        get()
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert names(out) == ["weights.bin.part"]


@pytest.mark.parametrize("name", ["weights.bin", "weights.bin.part"])
def test_a_pipe_in_a_file_s_place_is_refused_at_once(get, out, name):
    os.mkfifo(out / name)
    with pytest.raises(InputError, match=name):
        get("--force")


def test_a_folder_in_the_files_place_is_left_alone(get, out):
    (out / "weights.bin").mkdir()
    with pytest.raises(InputError, match="not a file"):
        get("--force")


def test_an_output_folder_that_is_a_file_is_told(get, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match="choose another folder"):
        get()


@pytest.mark.parametrize("argv", [["nobody"], []])
def test_an_unknown_name_is_answered_with_the_known_ones(argv):
    with pytest.raises(InputError, match="48fb8cd4, e0de5954, c1f2ab1a, before_end2end, after_end2end"):
        download.main(argv)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "null", "{", '{"files": 3}', '{"files": []}', '{"files": {}}', '{"files": ["weights"]}'),
        *('{"files": [null]}', '{"files": [{"name": "weights"}]}', "\xff", "[" * 100_000),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "m.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"m\.json.* (manifest|name, file, url|UTF-8)") as caught:
        download.main(["weights", "--manifest", str(tmp_path / "m.json")])
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_is_told(tmp_path):
    with pytest.raises(InputError, match=r"none.json: no such manifest file"):
        download.main(["weights", "--manifest", str(tmp_path / "none.json")])


@pytest.mark.parametrize(
    ("field", "values", "said"),
    [
        ("name", [3, None, "", "a\nb"], "name"),
        ("file", [3, "", ".", "..", "../x", "/etc/x", "a\0b", "a\n", "\ud800", "é" * 126], "file|surrogates"),
        ("url", [3, "", "file:///etc/x", "ftp://a/x", "http://", "http://a:port/x"], "url|address"),
        ("url", ["http://[::1", "http://a:99999/"], "not an http.* address"),
        ("url", ["http://é.org/x", "http://a/é", "http://a/b c", "http://a/\n", " http://a/"], "written as %xx"),
        ("bytes", [None, "1", 1.0, True, 0, -1, 10**30], "bytes must be a whole number"),
        ("sha256", [None, 3, "", "abc", SHA256 + "0", "g" * 64], "sha256"),
        ("holds", [3, ["model1"], {"model1": 3}], "holds must be an object of texts"),
    ],
)
def test_a_manifest_of_other_values_is_one_line_and_leads_nowhere(tmp_path, field, values, said):
    for value in values:
        manifest = write_manifest(tmp_path, 1, **{field: value})
        with pytest.raises(InputError, match=said) as caught:
            download.main(["weights", "--manifest", str(manifest), "--out", str(tmp_path)])
        assert "\n" not in str(caught.value)
        assert str(manifest) in str(caught.value)
    assert names(tmp_path) == ["manifest.json"]


def test_two_entries_of_one_name_are_refused(tmp_path):
    manifest = json.loads(write_manifest(tmp_path, 1).read_text())
    (tmp_path / "m.json").write_text(json.dumps({"files": manifest["files"] * 2}))
    with pytest.raises(InputError, match="two entries are called 'weights'"):
        download.read_manifest(tmp_path / "m.json")


def test_the_list_shows_every_published_checkpoint_and_whose_they_are(capsys):
    assert download.main(["--list"]) == 0
    shown = capsys.readouterr().out
    for name in ("48fb8cd4", "e0de5954", "c1f2ab1a", "before_end2end", "after_end2end"):
        assert name in shown
    assert "authors" in shown


def test_the_shipped_manifest_is_sound():
    entries, _ = download.read_manifest(download.CHECKPOINTS / "manifest.json")
    assert [entry.bytes for entry in entries.values()] == [3365764, 48284056, 13259785, 61538410, 61544623]
    assert all(re.fullmatch("[0-9a-f]{64}", entry.sha256) for entry in entries.values())
    assert all(entry.url.endswith(entry.file) for entry in entries.values())
