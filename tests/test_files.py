"""Files are opened where they are regular, read in one-line errors, written whole or not at all; Markdown tables."""

import hashlib
import os
import stat

import pytest

from tests.damage import SPECIAL, refuses
from tests.fixtures import names
from utils.files import open_regular, read_bytes, read_json, read_json_lines, sha256, write_text, write_whole
from utils.tables import markdown


def test_a_file_is_written_and_nothing_else_stays_in_its_folder_as_readable_as_others(tmp_path):
    write_whole(tmp_path / "a.bin", lambda file: file.write(b"\x00\xff"))
    write_text(tmp_path / ("a" * 255), "– · é\r\n\n")  # the longest name; text is UTF-8 with its own line ends
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / ("a" * 255)).read_bytes() == "– · é\r\n\n".encode()
    assert names(tmp_path) == ["a.bin", "a" * 255]
    (tmp_path / "plain").write_text("x")
    assert len({stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("half"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_older_file_and_no_other(tmp_path, error):
    write_text(tmp_path / "a.txt", "old")

    def write(file):
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_whole(tmp_path / "a.txt", write)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_until_it_is_whole_only_the_older_file_is_seen_and_two_writers_of_one_file_do_not_mix(tmp_path):
    def write_around(file):
        file.write(b"out")
        file.flush()
        seen.append((tmp_path / "a.txt").read_text())
        write_text(tmp_path / "a.txt", "inner")
        file.write(b"er")

    seen = []
    write_text(tmp_path / "a.txt", "old")
    write_whole(tmp_path / "a.txt", write_around)
    assert seen == ["old"]
    assert (tmp_path / "a.txt").read_text() == "outer"
    assert names(tmp_path) == ["a.txt"]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "a.txt").symlink_to(tmp_path / "target")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_the_digest_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "a.bin").write_bytes(content)
    assert sha256(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()


NO_FILES = {
    "missing": "no such photo",
    "link to nothing": "no such photo",
    "link to itself": "cannot be read",
    "folder": "is a folder, not a file: give a photo",
    "pipe": "is a pipe or a device, not a file",
    "socket": "it is a socket, not a file",
    "endless device": "is a pipe or a device, not a file",
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_regular_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "odd"
    SPECIAL[kind](path)
    before = len(os.listdir("/proc/self/fd"))
    with refuses(path, NO_FILES[kind]):
        open_regular(path, "photo")
    for read in (read_bytes, sha256):
        with refuses(path):
            read(path)
    assert len(os.listdir("/proc/self/fd")) <= before  # less where garbage of other tests is collected meanwhile


def test_names_that_no_file_can_have_and_unreadable_files_are_refused(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    with refuses("is not a file name"):
        open_regular(tmp_path / "a\0b")
    with refuses("cannot be read: File name too long"):
        open_regular(tmp_path / ("a" * 300))
    monkeypatch.setattr(os, "open", refuse)
    with refuses("cannot be read: Permission denied"):
        open_regular(tmp_path / "mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b'{"f1": 0.', "Expecting"),
        (b"[1]", "it holds no object"),
        (b'{"f1": 1} {}', "Extra data"),
        (b'{"f1": ' + b"1" * 5000 + b"}", "digits"),
        (b"[" * 100_000, "recursion"),
        (b'{"name": "\\ud800"}', "surrogates"),
        (b'{"name": "\xff"}', "is not UTF-8 text"),
        ('{"f1": 1}'.encode("utf-16"), "is not UTF-8 text"),
    ],
)
def test_json_that_is_damaged_is_one_line(content, message, tmp_path):
    (tmp_path / "scores.json").write_bytes(content)
    with refuses(tmp_path / "scores.json", message, "again, or remove it"):
        read_json(tmp_path / "scores.json", "scores")


def test_json_and_lines_of_it_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, null], "b": "–"}')
    (tmp_path / "link.json").symlink_to("a.json")
    assert read_json(tmp_path / "link.json", "scores") == {"a": [1, None], "b": "–"}
    (tmp_path / "log.jsonl").write_text('{"epoch": 0}\n\n{"epoch": 1}\n')
    assert read_json_lines(tmp_path / "log.jsonl", "log") == [{"epoch": 0}, {"epoch": 1}]
    (tmp_path / "log.jsonl").write_text('{"epoch": 0}\n{"epoch"')
    with refuses("log.jsonl, line 2, is damaged"):
        read_json_lines(tmp_path / "log.jsonl", "log")


def test_a_table_rounds_floats_escapes_bars_and_dashes_what_is_absent():
    rows = [["a|b", 0.12345, None], ["whole", 1.0, 12]]
    assert markdown(["name", "F1", "faces"], rows) == (
        "| name | F1 | faces |\n| --- | ---: | ---: |\n| a\\|b | 0.1235 | – |\n| whole | 1.0000 | 12 |\n"
    )
    assert "| 0.1 |" in markdown(["name", "F1"], [["a", 0.12345]], digits=1)
