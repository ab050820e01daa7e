"""Locks: two processes that write the same files would mix them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

from utils import distributed
from utils.errors import InputError

PATIENCE = 5.0  # seconds of waiting in silence


def held(path: Path, what: str) -> AcquireReturnProxy:
    """A context that holds the lock on a file; it waits as long as another process holds it, and says so.

    what: it is that the lock is for, for the message. Raises OSError where the file cannot be made.
    """
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=PATIENCE)
    except Timeout:
        print(f"{what} is in use by another process: waiting until it ends", file=sys.stderr, flush=True)
        return lock.acquire()


@contextmanager
def one_run(folder: Path, flag: str) -> Iterator[None]:
    """Keep every other run out of a folder, which is made where it is missing. The leading process does so for all.

    The lock is on the file ``.lock`` in the folder. It ends with the process, however that ends; a file that a killed
    process left locks nothing. flag: the option that names the folder, for messages. Raises InputError where another
    run holds the lock, and for a folder that cannot be made.
    """
    if distributed.rank() > 0:
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(
            f"{flag} {folder} is in use by another run: wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise InputError(f"{flag} {folder} cannot be made ({error.strerror}): choose another") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # before it is released: nobody else can hold it yet
        lock.release()
