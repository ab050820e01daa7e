"""The page: what it saves is what predict.py writes, in Python and through a browser."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import skimage.data
from PIL import Image

import app
import predict
from data.images import read_labels, read_photo
from data.labels import CELEBAMASK
from faces import SceneParser
from faces.detect import Detector
from models.loading import SHIPPED_WEIGHTS, load_for_inference
from tests.fixtures import REPOSITORY, names
from utils.runtime import pick_device, run_main

NAMES = ("photo.png", "photo_overlay.jpg", "photo_faces.json")
SECONDS = 180  # after which a page that does not start, or end, hangs


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A face in a JPEG whose EXIF data turn it by a quarter."""
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(skimage.data.astronaut()[:300]).transpose(Image.Transpose.ROTATE_90)
    turned.save(path, quality=90, exif=exif)  # Eileen Collins, NASA, public domain
    return path


@pytest.fixture(scope="module")
def written(photo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What predict.py writes for it."""
    out = tmp_path_factory.mktemp("out")
    assert predict.main([str(photo), "--out", str(out), "--device", "cpu"]) == 0
    return {name: (out / name).read_bytes() for name in NAMES}


@pytest.fixture(scope="module")
def parse() -> SceneParser:
    return SceneParser(load_for_inference([SHIPPED_WEIGHTS], pick_device("cpu")), Detector(), amp="auto")


def test_every_part_has_a_patch_of_its_colour(parse):
    labels = parse.parser.labels
    patches = re.findall(r"nth-of-type\((\d+)\) span::before \{ background: rgb(\(.*?\));", app.style(labels))
    assert patches == [(str(k), str(labels.colours[k])) for k in range(1, len(labels))]
    assert {"earring", "right ear", "upper lip", "glasses", "nose"} <= {*CELEBAMASK.words}
    assert app.parse_options(["--port", str(free_port()), "--labels", "celebamask"]).labels == "celebamask"


def test_a_dropped_photo_is_shown_and_saved_and_its_parts_are_switched(parse, photo, written, tmp_path):
    gradio, dropped = MagicMock(), Path(shutil.copy(photo, tmp_path))
    gradio.DownloadButton.side_effect = lambda label, **_: label.split()[0]
    app.build_page(gradio, parse, tmp_path)
    (drop, *_), (switch, *_) = (
        gradio.File.return_value.upload.call_args.args,
        gradio.CheckboxGroup.return_value.input.call_args.args,
    )
    every = range(len(parse.parser.labels) - 1)
    result = drop(str(dropped), every)
    status, kept = gradio.HTML.return_value, gradio.State.return_value
    assert result[status] == '<p role="status"><b>photo.jpg</b>: 1 face found.</p>'
    assert [result[button].read_bytes() for button in ("Label", "Overlay", "Faces")] == [*written.values()]
    shown = {part: read_photo(switch(result[kept], part)["Overlay"]).astype(int) for part in ((), (4,))}
    nose_HW = read_labels(result["Label"]) == 5
    painted_HW = np.abs(shown[4,] - shown[()]).max(2) > 60  # more than JPEG does
    assert painted_HW[nose_HW].mean() > 0.5
    assert painted_HW[~nose_HW].mean() < 1e-3
    assert (np.abs(shown[()] - read_photo(photo)).max(2) > 60).mean() < 1e-3
    assert switch(result[kept], every)["Overlay"].read_bytes() == written["photo_overlay.jpg"]
    dropped.unlink()
    (tmp_path / "a & b.txt").write_text("no photo")
    for failed, message in (
        (switch(result[kept], every), "photo.jpg was removed after 60 minutes: drop it again"),
        (drop(str(tmp_path / "clip.mp4"), every), "clip.mp4 is a video, which this page does not parse: python"),
        (drop(str(tmp_path / "a & b.txt"), every), "cannot read image a &amp; b.txt: no JPEG, PNG"),
    ):
        assert f'<span class="failed">{message}' in failed[status]
        assert failed["Label"] is None
    assert app.message(ZeroDivisionError("a defect"), photo) == ""  # which keeps its traceback


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the page needs gradio ("),
        ("--port 0", "--port 0: must be between 1 and 65535"),
        ("--port TAKEN", "--host 127.0.0.1 --port TAKEN: cannot be opened ("),
        ("--host no.such.host", "--host no.such.host --port"),
        ("--checkpoint missing.pt", "missing.pt"),
    ],
)
def test_wrong_options_and_a_missing_package_are_one_line(words, message, monkeypatch, capsys):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "no_proxy"):
        monkeypatch.setenv(name, "as it was")  # and again after the test
    if words:
        monkeypatch.setattr(app, "import_gradio", lambda: None)
    else:
        monkeypatch.setitem(sys.modules, "gradio", None)
    words = words if "--port" in words else f"{words} --port {free_port()}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert run_main(lambda: app.main(words.replace("TAKEN", port).split())) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message.replace('TAKEN', port)}")


def answers(address: str, path: str, headers: dict[str, str], folder: Path) -> list[int]:
    """The statuses that a request to the page at an address is answered with; an upload breaks off half way."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def page(scope: dict, receive: Callable, send: Callable) -> None:
        if path.endswith("upload"):
            (folder / "tmpabc").write_bytes(b"half a photo")
            raise ConnectionError  # the browser has gone
        await send({"status": 200})

    scope = {"type": "http", "path": path, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    with suppress(ConnectionError):
        asyncio.run(app.Guard(page, address, folder)(scope, page, send))
    return [message["status"] for message in sent if "status" in message]


@pytest.mark.parametrize(
    ("address", "host", "origin", "status"),
    [
        ("127.0.0.1", "127.0.0.1:7860", None, 200),
        ("127.0.0.1", "LOCALHOST", "http://LOCALHOST", 200),
        ("::1", "[::1]:7860", "http://[::1]:7860", 200),
        ("faces.lan", "faces.lan", None, 200),
        ("0.0.0.0", "192.168.1.7:80", None, 200),
        ("0.0.0.0", "evil.example", None, 403),
        ("0.0.0.0", "192.168.1.7", "http://6.6.6.6", 403),
        ("127.0.0.1", "evil.example:7860", None, 403),
        ("127.0.0.1", "192.168.1.7", None, 403),
        ("127.0.0.1", "[::1", None, 403),
        ("127.0.0.1", None, None, 403),
        ("127.0.0.1", "127.0.0.1:7860", "https://evil.example", 403),
        ("127.0.0.1", "127.0.0.1:7860", "null", 403),
    ],
)
def test_requests_of_other_sites_are_refused(address, host, origin, status, tmp_path):
    headers = {name: value for name, value in (("host", host), ("origin", origin)) if value}
    assert answers(address, "/", headers, tmp_path) == [status]


def test_an_upload_that_ends_early_leaves_nothing(tmp_path):
    assert answers("127.0.0.1", "/gradio_api/upload", {"host": "127.0.0.1"}, tmp_path) == []
    assert not any(tmp_path.iterdir())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_the_page_listens_to_this_machine_alone_and_leaves_nothing_behind(tmp_path):
    pytest.importorskip("gradio")
    port, (log, temporary) = free_port(), (tmp_path / name for name in ("log", "temporary"))
    temporary.mkdir()  # the folder for temporary files, which the page has for itself
    command = [sys.executable, str(REPOSITORY / "app.py"), "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with open(log, "wb") as file:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + SECONDS
        while process.poll() is None and not log.read_bytes():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert log.read_text() == f"http://127.0.0.1:{port}/ shows the page; Ctrl-C stops it\n"
        socket.create_connection(("127.0.0.1", port), 5).close()
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), 5)
        (folder,) = temporary.glob("stn-icnn-*")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 130
        assert not folder.exists()
        assert names(tmp_path) == ["log", "temporary"]
        assert log.read_text().splitlines()[1:] == [app.STOPPED]
    finally:
        process.kill()
        process.wait()
