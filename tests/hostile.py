"""Runs scripts on hostile input: each call in a process of its own, under limits; and what files there are.

``Scripts`` starts ``python -m tests.hostile``, which imports all scripts once and forks for every call: a call that
hangs, runs out of memory or dies takes nothing else with it, and needs no second import of torch.
"""

import faulthandler
import hashlib
import importlib
import json
import os
import resource
import selectors
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = (
    "train_stage1",
    "train_cropper",
    "train_stage2",
    "train_end2end",
    "reproduce",
    "evaluate",
    "predict",
    "download",
    "tools.check",
    "tools.export",
    "tools.relabel",
    "tools.release",
    "experiments.report",
    "hubconf",
)
GUESTS = ("train_deeplab", "train_eagrnet", "tools.edges", "retrieval.align", "retrieval.train", "retrieval.search")
SECONDS = 20  # for one call: a hundred times what it takes, since other tests run beside it


@dataclass(frozen=True)
class Call:
    """One call of a script.

    script: of ``NAMES`` or ``GUESTS``; the arguments of "hubconf" are those of ``hubconf.stn_icnn``. folder: where it
    runs. memory: bytes that it may take beside what is taken when it starts. file_size: of the largest file that it
    may write, as on a full disk. seconds: its time limit.
    """

    script: str
    arguments: list[str]
    folder: str
    memory: int | None = None
    file_size: int | None = None
    seconds: int = SECONDS


@dataclass(frozen=True)
class Ended:
    """How a call ended. status: None for one that was still running when its time was up, negative for a signal."""

    status: int | None
    stdout: str
    stderr: str


class Scripts:
    """All scripts, imported in another process."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "no_proxy": "*", "PYTHONUTF8": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile"],
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, call: Call) -> Ended:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(asdict(call)) + "\n")
        self.server.stdin.flush()
        return Ended(**json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()


def serve() -> None:
    """Make the calls that come as lines of JSON."""
    import torch

    torch.set_num_threads(1)
    modules = {name: importlib.import_module(name) for name in (*NAMES, *GUESTS)}
    for line in sys.stdin:
        call = Call(**json.loads(line))
        pipes = os.pipe(), os.pipe()
        process = os.fork()
        if process == 0:
            take_over(call, [writes for _, writes in pipes])
            finish(attempt(modules[call.script], call.arguments))
        for _, writes in pipes:
            os.close(writes)
        print(json.dumps(asdict(wait(process, [reads for reads, _ in pipes], call.seconds))), flush=True)


def take_over(call: Call, outputs: list[int]) -> None:
    """Make this process the one that was called. outputs: its stdout and stderr."""
    os.setsid()
    os.chdir(call.folder)
    for number, output in enumerate((os.open(os.devnull, os.O_RDONLY), *outputs)):
        os.dup2(output, number)
    os.closerange(3, 64)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.dump_traceback_later(call.seconds, file=2)
    if call.memory is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + call.memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if call.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (call.file_size, call.file_size))


def attempt(module: Any, arguments: list[str]) -> int:
    """Run a script as from the command line; returns its exit status, 70 for what it did not catch."""
    from utils.runtime import run_main

    def hub() -> int:
        module.stn_icnn(*arguments)
        return 0

    try:
        return run_main(hub if module.__name__ == "hubconf" else lambda: module.main(arguments))
    except Exception:
        traceback.print_exc()
        return 70


def finish(status: int) -> NoReturn:
    """Wait for the threads, as the interpreter does at its end, and leave out the rest, which takes seconds."""
    threading._shutdown()  # type: ignore[attr-defined]
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait(process: int, outputs: list[int], seconds: int) -> Ended:
    """Read all that a process writes, until it ends or its time is up."""
    texts = {output: bytearray() for output in outputs}
    deadline = time.monotonic() + seconds + 1
    with selectors.DefaultSelector() as selector:
        for output in outputs:
            selector.register(output, selectors.EVENT_READ)
        while selector.get_map() and (ready := selector.select(max(0.0, deadline - time.monotonic()))):
            for key, _ in ready:
                if block := os.read(key.fd, 1 << 16):
                    texts[key.fd] += block
                else:
                    selector.unregister(key.fd)
        hangs = bool(selector.get_map())
    for output in outputs:
        os.close(output)
    if hangs:
        os.killpg(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return Ended(None if hangs else status, *(bytes(text).decode("utf-8", "replace") for text in texts.values()))


@contextmanager
def case_folder() -> Iterator[Path]:
    """A folder for a case alone, removed at once: beside it lies a file that no script may touch."""
    with tempfile.TemporaryDirectory(prefix="hostile") as root:
        (Path(root) / "case").mkdir()
        (Path(root) / "outside").mkdir()
        (Path(root) / "outside" / "sentinel.txt").write_text("not yours\n")
        yield Path(root) / "case"


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Every entry below a folder: its path from there -> its kind, and of files size, time and SHA-256, of links
    where they lead."""
    found: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            entry: tuple[Any, ...] = (stat.S_IFMT(about.st_mode),)
            if stat.S_ISREG(about.st_mode):
                with open(path, "rb") as file:
                    digest = hashlib.sha256(file.read()).hexdigest()
                entry += (about.st_size, about.st_mtime_ns, digest)
            elif stat.S_ISLNK(about.st_mode):
                entry += (os.readlink(path),)
            found[os.path.relpath(path, root)] = entry
    return found


if __name__ == "__main__":
    serve()
