"""Files are opened where they are regular, read in one-line errors, written whole or not at all; Markdown tables."""

import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.files import open_regular, read_bytes, read_json, read_json_lines, read_text, sha256, write_text, write_whole
from utils.tables import markdown


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_nothing_else_stays_in_its_folder(tmp_path):
    write_whole(tmp_path / "a.bin", lambda file: file.write(b"\x00\xff"))
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a.bin"]


def test_text_is_utf_8_with_its_own_line_ends(tmp_path):
    write_text(tmp_path / "a.md", "– · é\r\n\n")
    assert (tmp_path / "a.md").read_bytes() == "– · é\r\n\n".encode()


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


def test_until_it_is_whole_only_the_older_file_is_seen(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    seen = []

    def write(file):
        file.write(b"new")
        file.flush()
        seen.append((tmp_path / "a.txt").read_text())

    write_whole(tmp_path / "a.txt", write)
    assert seen == ["old"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path):
    (tmp_path / "target").write_text("mine")
    (tmp_path / "a.txt").symlink_to(tmp_path / "target")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    def write_around(file):
        file.write(b"out")
        write_text(tmp_path / "a.txt", "inner")
        file.write(b"er")

    write_whole(tmp_path / "a.txt", write_around)
    assert (tmp_path / "a.txt").read_text() == "outer"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_is_as_readable_as_the_users_other_files(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "whole", "x")
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("plain", "whole")}
    assert len(modes) == 1


def test_the_longest_file_name_can_be_written(tmp_path):
    write_text(tmp_path / ("a" * 255), "x")
    assert names(tmp_path) == ["a" * 255]


def test_a_folder_that_is_missing_or_in_the_way_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_text(tmp_path / "none" / "a.txt", "x")
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_text(tmp_path / "a.txt", "x")
    assert names(tmp_path) == ["a.txt"]


def test_the_digest_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "a.bin").write_bytes(content)
    assert sha256(tmp_path / "a.bin") == hashlib.sha256(content).hexdigest()


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


NO_FILES = {
    "nothing": (lambda path: None, "no such photo"),
    "a link to nothing": (lambda path: path.symlink_to("none"), "no such photo"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot be read"),
    "a folder": (lambda path: path.mkdir(), "is a folder, not a file: name a photo"),
    "a pipe": (lambda path: os.mkfifo(path), "is a pipe, not a file"),
    "a socket": (make_socket, "it is a socket, not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_regular_file_is_refused_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's address must be short
    make, said = NO_FILES[kind]
    path = Path("odd")
    make(path)
    for read in (lambda path: open_regular(path, "photo"), lambda path: read_bytes(path, "photo")):
        with pytest.raises(InputError, match=f"^odd.*{said}") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^odd"):
        sha256(path)


def test_a_name_that_can_be_none_and_a_file_that_may_not_be_read_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is not a file name"):
        open_regular(tmp_path / "a\0b")
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        open_regular(tmp_path / ("a" * 300))

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        open_regular(tmp_path / "mine")


def test_an_opened_file_is_read_from_its_start_and_closed_after_it(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"abc"
    assert file.closed
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(InputError):
            open_regular(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == count


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"f1": 0.', "Expecting"),
        (b"[1]", "it holds no object"),
        (b"null", "it holds no object"),
        (b'{"f1": 1} {}', "Extra data"),
        (b'{"f1": ' + b"1" * 5000 + b"}", "digits"),
        (b"[" * 100_000, "recursion"),
        (b'{"name": "\\ud800"}', "surrogates"),
        (b'{"name": "\xff"}', "is no text in UTF-8"),
        ('{"f1": 1}'.encode("utf-16"), "is no text in UTF-8"),
        (b"\x00\x01", "Expecting"),
    ],
)
def test_json_that_is_damaged_is_one_line(content, said, tmp_path):
    (tmp_path / "scores.json").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_json(tmp_path / "scores.json", "scores")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(tmp_path / "scores.json"))
    assert line.endswith("again, or remove it")


def test_json_and_lines_of_it_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, null], "b": "–"}')
    assert read_json(tmp_path / "a.json", "scores") == {"a": [1, None], "b": "–"}
    assert read_text(tmp_path / "a.json").endswith('"–"}')
    (tmp_path / "log.jsonl").write_text('{"epoch": 0}\n\n{"epoch": 1}\n')
    assert read_json_lines(tmp_path / "log.jsonl", "log") == [{"epoch": 0}, {"epoch": 1}]
    (tmp_path / "log.jsonl").write_text('{"epoch": 0}\n{"epoch"')
    with pytest.raises(InputError, match=r"log\.jsonl, line 2, is damaged"):
        read_json_lines(tmp_path / "log.jsonl", "log")
    with pytest.raises(InputError, match="no such scores file"):
        read_json(tmp_path / "none.json", "scores")


def test_a_table_rounds_floats_escapes_bars_and_dashes_what_is_absent():
    rows = [["a|b", 0.12345, None], ["whole", 1.0, 12]]
    assert markdown(["name", "F1", "faces"], rows) == (
        "| name | F1 | faces |\n| --- | ---: | ---: |\n| a\\|b | 0.1235 | – |\n| whole | 1.0000 | 12 |\n"
    )
    assert "| 0.1 |" in markdown(["name", "F1"], [["a", 0.12345]], digits=1)
