"""A page to try a parser: drop a photo, see the parts of its faces in colour, switch them on and off, and save the
results of predict.py. It runs on this machine and sends nothing anywhere."""

import argparse
import html
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from data.images import read_labels, read_photo
from data.labels import LABEL_SETS, LabelSet
from faces.detect import Detector
from faces.inputs import is_video
from faces.results import Job, write
from faces.scene import Face, SceneParser
from models.loading import load_for_inference
from scoring import options
from scoring.pictures import encode, overlay
from utils.cli import Parser
from utils.errors import InputError
from utils.files import write_bytes
from utils.runtime import explain, pick_device, printable, run_main

KEPT_SECONDS = 3600  # photos and results are removed once they are older
LARGEST = 2**30  # bytes of a photo
LOCAL = ("127.0.0.1", "localhost", "::1")
CSS = """
#status p { overflow-wrap: anywhere; }
#status .failed { color: var(--error-text-color); }
#overlay img { max-height: 75vh; object-fit: contain; }
#parts div.wrap:last-child { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: 0.4rem; }
#parts div.wrap label { padding: 0.4rem 0.5rem; }
#parts div.wrap label span { display: flex; align-items: center; gap: 0.4rem; margin-left: 0.4rem; }
#parts div.wrap label span::before { content: ""; width: 1rem; height: 1rem; border-radius: 0.25rem; flex: none; }
"""
STOPPED = "stopped: all photos and results of the page are removed"


def main(argv: list[str] | None = None) -> int:
    args = parse_options(argv)
    with tempfile.TemporaryDirectory(prefix="stn-icnn-") as folder:
        # read when gradio is imported: its one place for files, nothing sent to its makers, no proxy to this machine
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED="False", no_proxy="*")
        gradio = import_gradio()
        parser = load_for_inference(options.checkpoints(args), pick_device(args.device), labels=args.labels, amp="auto")
        parse = SceneParser(parser, Detector(), amp="auto")  # as predict.py has it
        page = build_page(gradio, parse, Path(folder))
        try:
            page.launch(
                server_name=f"[{args.host}]" if ":" in args.host else args.host,
                server_port=args.port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                css=style(parser.labels),
                max_file_size=LARGEST,
                app_kwargs={"middleware": [(Guard, (), {"host": args.host, "folder": Path(folder)})]},
            )
            print(f"{page.local_url} shows the page; Ctrl-C stops it", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)
    return 0


class Guard:
    """ASGI middleware around the page. Refuses requests that a page of another site may have sent, by name (DNS
    rebinding) or from there: their Host is not this page's, or their Origin is not their Host. Removes what uploads
    that end early leave.

    host: as of ``--host``; where that is every address of the machine, any address is this page's, and the machine's
    name. folder: gradio's, for files.
    """

    def __init__(self, app: Callable[..., Any], host: str, folder: Path) -> None:
        self.app, self.folder, self.uploads = app, folder, 0
        self.names, self.any_address = {*LOCAL, host.lower()}, host in ("0.0.0.0", "::")
        if self.any_address:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if not self.is_own(host) or (origin is not None and origin.partition("://")[2] != host):
            return await refuse(scope, send)
        if not scope["path"].endswith("/upload"):
            return await self.app(scope, receive, send)
        self.uploads += 1
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if type(error).__name__ != "ClientDisconnect":  # starlette's: the browser has gone
                raise
        finally:
            self.uploads -= 1
            for rest in self.folder.glob("tmp*") if self.uploads == 0 else ():
                if rest.is_file():
                    rest.unlink(missing_ok=True)

    def is_own(self, host: str) -> bool:
        """Whether the Host of a request, with or without port, is this page's."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names:
            return True
        with suppress(ValueError):
            return self.any_address and bool(ip_address(name))
        return False


async def refuse(scope: dict[str, Any], send: Callable[..., Any]) -> None:
    """Answer a request that is not for this page with one line."""
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close"})
    await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"this page is not at that address: see docs/app.md"})


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked. Raises InputError."""
    cli = Parser(__doc__)
    options.add_checkpoint_option(cli)
    cli.add_argument(
        "--labels",
        choices=tuple(LABEL_SETS),
        help="label set to predict; celebamask: all 19 classes; default: the checkpoint's",
    )
    options.add_device_option(cli)
    cli.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens the page to other machines"
    )
    cli.add_argument("--port", type=int, default=7860, metavar="N", help="port to listen on")
    args = cli.parse_args(argv)
    if not 1 <= args.port <= 65535:
        raise InputError(f"--port {args.port}: must be between 1 and 65535")
    for host in (args.host, "127.0.0.1"):  # gradio wants the port there too
        try:
            socket.create_server((host, args.port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"--host {host} --port {args.port}: cannot be opened ({reason})") from error
    return args


def import_gradio() -> Any:
    """Raises InputError where it is missing."""
    try:
        import gradio
    except ImportError as error:
        raise InputError(f"the page needs gradio ({error}): pip install -r requirements-app.txt") from error
    return gradio


def label(parse: SceneParser, photo: Path, folder: Path) -> tuple[Job, list[Face]]:
    """Parse a photo, and write its label map and the list of its faces into a folder as predict.py does.

    Raises InputError for a file that is no photo, OSError where the results cannot be written.
    """
    if is_video(photo):
        raise InputError(f"{photo} is a video, which this page does not parse: python predict.py does")
    job = Job(photo, {"labels": folder / f"{photo.stem}.png", "faces": folder / f"{photo.stem}_faces.json"})
    picture = read_photo(photo)
    scene = parse(picture)
    write(job, picture, scene)
    return job, scene.faces


def paint(job: Job, shown: Sequence[int], labels: LabelSet, folder: Path) -> Path:
    """Write the overlay of a labelled photo into a folder, with the parts of these ids alone.

    Raises InputError where the photo or its label map have been removed, OSError where it cannot be written.
    """
    if not (job.photo.exists() and job.outputs["labels"].exists()):
        raise InputError(f"{job.photo} was removed after {KEPT_SECONDS // 60} minutes: drop it again")
    labels_HW = read_labels(job.outputs["labels"])
    labels_HW[~np.isin(labels_HW, shown)] = 0
    path = folder / f"{job.photo.stem}_overlay.jpg"
    picture = Image.fromarray(overlay(read_photo(job.photo), labels_HW, labels))
    write_bytes(path, encode(picture, "JPEG", quality=92))
    return path


def found(faces: Sequence[Face]) -> str:
    """What to say of a photo's faces."""
    if not faces:
        return "No face found."
    if faces[0].detection is None:
        return "No face was detected; the whole photo was taken for one, as the parser is sure of all its parts."
    return f"{len(faces)} face{'s' * (len(faces) > 1)} found."


def message(error: Exception, photo: Path) -> str:
    """What predict.py would print of an error, with the name of the photo alone; empty for a defect of ours."""
    return printable(explain(error).replace(str(photo), photo.name))


def style(labels: LabelSet) -> str:
    """CSS of the page: each part's checkbox has a patch of its colour, so that they are the legend too."""
    patches = [
        f"#parts div.wrap label:nth-of-type({place}) span::before {{ background: rgb{labels.colours[place]}; }}"
        for place in range(1, len(labels))
    ]
    return "\n".join([CSS, *patches])


def build_page(gradio: Any, parse: SceneParser, folder: Path) -> Any:
    """The page, gradio's Blocks. folder: where results are written, in gradio's own folder for files."""
    labels = parse.parser.labels
    names = list(labels.words[1:])

    def drop(file: str, shown: list[int]) -> dict[Any, Any]:
        def work() -> dict[Any, Any]:
            job, faces = label(parse, Path(file), new_folder())
            line = f"<b>{html.escape(job.photo.name)}</b>: {found(faces)}"
            return outcome(line, job, repaint(job, shown))

        return {photo: None, **attempt(work, Path(file))}  # ready for the next one

    def switch(job: Job | None, shown: list[int]) -> dict[Any, Any]:
        if job is None:
            return gradio.skip()

        def work() -> dict[Any, Any]:
            overlay = repaint(job, shown)
            return {picture: overlay, overlay_button: overlay}

        return attempt(work, job.photo)

    def attempt(work: Callable[[], dict[Any, Any]], path: Path) -> dict[Any, Any]:
        try:
            return work()
        except Exception as error:
            line = message(error, path)
            if not line:
                raise
            return outcome(f'<span class="failed">{html.escape(line)}</span>')

    def repaint(job: Job, shown: list[int]) -> Path:
        return paint(job, [place + 1 for place in shown], labels, new_folder())

    def new_folder() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))  # a new name, so that no browser shows an older picture

    def outcome(line: str, job: Job | None = None, overlay: Path | None = None) -> dict[Any, Any]:
        files = {} if job is None else job.outputs
        return {
            status: f'<p role="status">{line}</p>',
            kept: job,
            picture: overlay,
            overlay_button: overlay,
            labels_button: files.get("labels"),
            faces_button: files.get("faces"),
            results: gradio.Row(visible=job is not None),
        }

    with gradio.Blocks(title="Face parsing", delete_cache=(60, KEPT_SECONDS)) as page:
        gradio.Markdown("## Face parsing\nDrop a photo: the parts of every face in it are coloured.")
        photo = gradio.File(label="Photo", height=140, elem_id="photo")
        status = gradio.HTML(elem_id="status")
        kept = gradio.State()
        with gradio.Row(visible=False) as results:
            with gradio.Column(scale=3, min_width=320):
                picture = gradio.Image(label="Overlay", interactive=False, buttons=["fullscreen"], elem_id="overlay")
            with gradio.Column(scale=1, min_width=340):
                parts = gradio.CheckboxGroup(
                    names, value=names, type="index", label="Parts", show_select_all=True, elem_id="parts"
                )
                overlay_button = gradio.DownloadButton("Overlay as shown (JPEG)", size="md", elem_id="save-overlay")
                labels_button = gradio.DownloadButton("Label map of all parts (PNG)", size="md", elem_id="save-labels")
                faces_button = gradio.DownloadButton("Faces (JSON)", size="md", elem_id="save-faces")
        outputs = [photo, status, kept, picture, overlay_button, labels_button, faces_button, results]
        how = {"concurrency_limit": 1, "concurrency_id": "parser", "api_visibility": "private"}
        photo.upload(drop, [photo, parts], outputs, show_progress_on=photo, **how)
        parts.input(switch, [kept, parts], outputs[1:], show_progress_on=picture, **how)
    return page


if __name__ == "__main__":
    sys.exit(run_main(main, STOPPED))
