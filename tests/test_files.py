"""Files are written whole or not at all; Markdown tables."""

import hashlib
import os
import stat

import pytest

from utils.files import sha256, write_text, write_whole
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


def test_a_table_rounds_floats_escapes_bars_and_dashes_what_is_absent():
    rows = [["a|b", 0.12345, None], ["whole", 1.0, 12]]
    assert markdown(["name", "F1", "faces"], rows) == (
        "| name | F1 | faces |\n| --- | ---: | ---: |\n| a\\|b | 0.1235 | – |\n| whole | 1.0000 | 12 |\n"
    )
    assert "| 0.1 |" in markdown(["name", "F1"], [["a", 0.12345]], digits=1)
