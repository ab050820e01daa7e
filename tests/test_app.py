"""The page: what it saves is what predict.py writes, in Python and through a browser."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from faces.results import Job
from models.loading import SHIPPED_WEIGHTS, load_for_inference
from utils.errors import InputError
from utils.runtime import pick_device, run_main

REPOSITORY = Path(app.__file__).parent
NAMES = ("photo.png", "photo_overlay.jpg", "photo_faces.json")
SECONDS = 60


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


@pytest.fixture(scope="module")
def job(parse: SceneParser, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    job, faces = app.label(parse, photo, tmp_path_factory.mktemp("results"))
    assert len(faces) == 1
    return job


def test_results_are_those_of_predict(job, parse, written, tmp_path):
    labels = parse.parser.labels
    overlay = app.paint(job, range(len(labels)), labels, tmp_path)
    files = [job.outputs["labels"], overlay, job.outputs["faces"]]
    assert {file.name: file.read_bytes() for file in files} == written
    assert len(json.loads(written["photo_faces.json"])["faces"]) == 1


def test_parts_that_are_switched_off_are_not_painted(job, parse, tmp_path):
    labels, picture = parse.parser.labels, read_photo(job.photo).astype(int)
    labels_HW = read_labels(job.outputs["labels"])
    nose = labels.names.index("nose")
    changed = {}
    for name, shown in {"all": range(len(labels)), "none": (), "nose": [nose]}.items():
        (tmp_path / name).mkdir()
        painted = read_photo(app.paint(job, shown, labels, tmp_path / name))
        changed[name] = np.abs(painted - picture).max(2) > 60  # more than JPEG does
    assert changed["all"][labels_HW > 0].mean() > 0.5
    assert changed["none"].mean() < 1e-3
    assert changed["nose"][labels_HW == nose].mean() > 0.5
    assert changed["nose"][labels_HW != nose].mean() < 1e-3
    assert (read_labels(job.outputs["labels"]) == labels_HW).all()


def test_a_photo_that_was_removed_is_asked_for_again(job, parse, tmp_path):
    gone = job._replace(photo=tmp_path / "gone.jpg")
    with pytest.raises(InputError, match=r"gone\.jpg was removed after 60 minutes: drop it again"):
        app.paint(gone, [1], parse.parser.labels, tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_is_no_photo_is_told_by_its_name_alone(parse, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no photo")
    with pytest.raises(InputError) as caught:
        app.label(parse, path, tmp_path)
    assert app.message(caught.value, path).startswith("cannot read image notes.txt: no JPEG, PNG")
    assert app.message(ZeroDivisionError("a defect"), path) == ""
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(InputError, match=r"clip\.mp4 is a video, .* python predict\.py does"):
        app.label(parse, tmp_path / "clip.mp4", tmp_path)


def test_faces_are_counted(parse, photo, tmp_path):
    empty = tmp_path / "empty.png"
    Image.new("RGB", (120, 80), (40, 90, 60)).save(empty)
    job, faces = app.label(parse, empty, tmp_path)
    assert app.found(faces) == "No face found."
    assert not read_labels(job.outputs["labels"]).any()
    (face,) = parse(photo).faces
    assert app.found([face]) == "1 face found."
    assert app.found([face, face]) == "2 faces found."
    assert "the whole photo was taken for one" in app.found([replace(face, detection=None)])


def test_every_part_has_a_patch_of_its_colour(parse):
    labels = parse.parser.labels
    patches = re.findall(r"nth-of-type\((\d+)\) span::before \{ background: rgb(\(.*?\));", app.style(labels))
    assert patches == [(str(k), str(labels.colours[k])) for k in range(1, len(labels))]
    assert {"earring", "right ear", "upper lip", "glasses", "nose"} <= {*CELEBAMASK.words}
    assert app.parse_options(["--port", str(free_port()), "--labels", "celebamask"]).labels == "celebamask"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the page needs gradio: pip install -r requirements-app.txt"),
        (["--port", "0"], "--port 0: must be between 1 and 65535"),
        (["--port", "http"], "--port"),
        (["--port", "TAKEN"], "--host 127.0.0.1 --port TAKEN: cannot be listened on ("),
        (["--host", "no such host"], "--host no such host --port"),
        (["--device", "toaster"], "--device toaster: not a device"),
        (["--checkpoint", "missing.pt"], "missing.pt"),
        (["photo.jpg"], "photo.jpg"),
    ],
)
def test_wrong_options_and_a_missing_package_are_one_line(words, told, monkeypatch, capsys):
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "no_proxy"):
        monkeypatch.setenv(name, "as it was")  # and again after the test
    if words:
        monkeypatch.setattr(app, "import_gradio", lambda: None)
    else:
        monkeypatch.setitem(sys.modules, "gradio", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = [] if "--port" in words else ["--port", str(free_port())]
        words = [word.replace("TAKEN", number := str(taken.getsockname()[1])) for word in [*words, *port]]
        assert run_main(lambda: app.main(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(piece in line for piece in told.replace("TAKEN", number).split(": pip"))


@pytest.mark.parametrize(
    ("host", "headers", "status"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:7860"}, 200),
        ("127.0.0.1", {"host": "LOCALHOST", "origin": "http://LOCALHOST"}, 200),
        ("::1", {"host": "[::1]:7860", "origin": "http://[::1]:7860"}, 200),
        ("faces.lan", {"host": "faces.lan"}, 200),
        ("0.0.0.0", {"host": "192.168.1.7:80"}, 200),
        ("0.0.0.0", {"host": "evil.example"}, 403),
        ("0.0.0.0", {"host": "192.168.1.7", "origin": "http://6.6.6.6"}, 403),
        ("127.0.0.1", {"host": "evil.example:7860"}, 403),
        ("127.0.0.1", {"host": "192.168.1.7"}, 403),
        ("127.0.0.1", {"host": "[::1"}, 403),
        ("127.0.0.1", {}, 403),
        ("127.0.0.1", {"host": "127.0.0.1:7860", "origin": "https://evil.example"}, 403),
        ("127.0.0.1", {"host": "127.0.0.1:7860", "origin": "null"}, 403),
        ("127.0.0.1", {"host": "127.0.0.1", "content-length": "90"}, 200),
        ("127.0.0.1", {"host": "127.0.0.1", "content-length": str(2**60)}, 413),
    ],
)
def test_requests_of_other_sites_and_what_the_disk_does_not_hold_are_refused(
    host: str, headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    async def page(scope: dict, receive: Callable, send: Callable) -> None:
        (tmp_path / "tmpabc").write_bytes(b"half a photo")
        if "content-length" in headers:
            raise ConnectionError  # the browser has gone
        await app.refuse(scope, send, 200, "the page")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    sent: list[dict[str, Any]] = []
    path = "/gradio_api/upload" if "content-length" in headers else "/"
    scope = {"type": "http", "path": path, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    guard = app.Guard(page, host, tmp_path)
    with suppress(ConnectionError):
        asyncio.run(guard(scope, page, send))
    assert [message["status"] for message in sent[:1]] == [status] * (path == "/" or status != 200)
    assert (tmp_path / "tmpabc").exists() == (path == "/" and status == 200)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_for(ready: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + SECONDS
    while not (value := ready()):
        assert time.monotonic() < end, f"{what}: not within {SECONDS} s"
        time.sleep(0.05)
    return value


# through a browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """The page in a process of its own. temporary: the folder for temporary files, which it has for itself."""
    pytest.importorskip("gradio")
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    (folder / "temporary").mkdir()
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "app.py"), "--port", str(port), "--device", "cpu"],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder / "temporary")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_for(lambda: process.poll() is not None or (folder / "log").read_bytes(), "the server")
        assert (folder / "log").read_text() == f"{address} shows the page; Ctrl-C stops it\n"
        yield SimpleNamespace(address=address, port=port, process=process, folder=folder)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser(server: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium with the page open, its log of requests and a folder for what it saves."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    given = webdriver.ChromeOptions()
    given.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu", "window-size=1280,900"):
        given.add_argument(f"--{word}")
    saved = tmp_path_factory.mktemp("saved")
    given.add_experimental_option("prefs", {"download.default_directory": str(saved)})
    given.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    chrome = webdriver.Chrome(options=given, service=webdriver.ChromeService(driver))
    chrome.saved = saved
    try:
        chrome.get(server.address)
        yield chrome
    finally:
        chrome.quit()


def shown(browser: Any, selector: str) -> list[Any]:
    return [element for element in browser.find_elements("css selector", selector) if element.is_displayed()]


def sources(browser: Any) -> list[str]:
    """Where the picture that the page shows comes from."""
    return [picture.get_attribute("src") for picture in shown(browser, "#overlay img")]


def drop(browser: Any, path: Path) -> str:
    """Give the page a file; the line that tells of it."""
    field = wait_for(lambda: browser.find_elements("css selector", "#photo input[type=file]"), "the page")[0]
    field.send_keys(str(path))

    def line() -> str:
        text = " ".join(element.text for element in shown(browser, "#status"))
        return text if path.name in text else ""

    return wait_for(line, f"the line about {path.name}")


def save(browser: Any, button: str, name: str) -> bytes:
    """Press a button; the file that it saves."""
    (browser.saved / name).unlink(missing_ok=True)
    wait_for(lambda: shown(browser, f"#save-{button}"), button)[0].click()
    wait_for(lambda: (browser.saved / name).exists(), name)
    return (browser.saved / name).read_bytes()


def test_a_photo_through_the_browser(browser, photo, written):
    assert drop(browser, photo) == "photo.jpg: 1 face found."
    assert save(browser, "labels", "photo.png") == written["photo.png"]
    assert save(browser, "overlay", "photo_overlay.jpg") == written["photo_overlay.jpg"]
    assert save(browser, "faces", "photo_faces.json") == written["photo_faces.json"]
    before = sources(browser)
    shown(browser, "#parts input[title=nose]")[0].click()
    wait_for(lambda: sources(browser) not in ([], before), "the overlay without the nose")
    save(browser, "overlay", "photo_overlay.jpg")
    (browser.saved / "written.jpg").write_bytes(written["photo_overlay.jpg"])
    (browser.saved / "written.png").write_bytes(written["photo.png"])
    apart_HW = np.abs(
        read_photo(browser.saved / "photo_overlay.jpg").astype(int) - read_photo(browser.saved / "written.jpg")
    ).max(2)
    nose_HW = read_labels(browser.saved / "written.png") == 5
    assert (apart_HW[nose_HW] > 40).mean() > 0.5
    assert (apart_HW[~nose_HW] > 40).mean() < 1e-3
    assert save(browser, "labels", "photo.png") == written["photo.png"]  # all parts, whatever is shown
    shown(browser, "#parts input[title=nose]")[0].click()
    wait_for(lambda: save(browser, "overlay", "photo_overlay.jpg") == written["photo_overlay.jpg"], "the nose")


def test_what_is_no_photo_through_the_browser(browser, tmp_path):
    path = tmp_path / "notes & co.txt"
    path.write_text("no photo")
    assert drop(browser, path).startswith("cannot read image notes & co.txt: no JPEG, PNG")
    assert not shown(browser, "#overlay")
    assert not shown(browser, "#save-labels")


def test_nothing_outside_this_machine_is_asked(browser, server):
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert any("/upload" in url for url in asked)
    assert [url for url in asked if not url.startswith((server.address, "data:", "blob:"))] == []


def test_only_this_machine_is_listened_to(server):
    socket.create_connection(("127.0.0.1", server.port), 5).close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", server.port), 5)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_nothing_is_left_behind(server):
    (folder,) = (server.folder / "temporary").glob("stn-icnn-*")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(SECONDS) == 130
    assert not folder.exists()
    assert sorted(path.name for path in server.folder.iterdir()) == ["log", "temporary"]
    assert (server.folder / "log").read_text().splitlines()[1:] == [app.STOPPED]
