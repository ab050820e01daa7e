"""A lock on the folder of a run: two runs that write the same files would mix them."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils import distributed
from utils.errors import InputError

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what disks that know no locks answer


@contextmanager
def one_run(folder: Path, flag: str) -> Iterator[None]:
    """Keep every other run out of a folder, which is made where it is missing. The leading process does so for all.

    The lock is on the file ``.lock`` in the folder, which is there as long. It ends with the process, however that
    ends; a file that a killed process left locks nothing. flag: the option that names the folder, for messages.
    Raises InputError where another run holds the lock, and for a folder that cannot be made.
    """
    if distributed.rank() > 0:
        yield
        return
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = _lock(path)
    except BlockingIOError as error:
        raise InputError(f"{flag} {folder} is in use by another run: wait for its end, or name another") from error
    except OSError as error:
        raise InputError(f"{flag} {folder} cannot be made ({error.strerror}): name another") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(number)


def _lock(path: Path) -> int:
    """The descriptor of the file, locked. Raises BlockingIOError where another process holds the lock."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            # lockf, not flock: the processes that load faces would inherit that one, and outlive a killed run
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(number), os.stat(path)):
                return number
        except FileNotFoundError:
            pass  # removed by its last holder between our two looks, as in the other case that ends here
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                return number
            os.close(number)
            raise
        os.close(number)
