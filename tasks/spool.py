"""Private scratch folders whose lock lives as long as their process; the next process removes those of dead ones."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dalle_model.errors import StoreError, StoreFull

_SPOOL, _NEW = "spool-", "new-"
_NEW_S = 3600.0  # age at which a folder that is not locked yet is one whose maker died


def make_spool(folder: Path, fingerprint: str) -> tuple[Path, IO[str]]:
    """A new folder in ``folder`` and its lock; folders of dead processes are removed.

    Raises StoreFull or StoreError, naming DALLE_SPOOL, when the place cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_dead(folder)
        new = Path(tempfile.mkdtemp(prefix=f"{_NEW}{fingerprint[:12]}-", dir=folder))
        lock = (new / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Named only now: without a lock it would look like a dead process's to somebody who starts at this moment.
        spool = new.rename(new.with_name(_SPOOL + new.name.removeprefix(_NEW)))
    except OSError as error:
        raise spool_error(folder, error) from error
    return spool, lock


@contextlib.contextmanager
def spool_folder(folder: Path, fingerprint: str) -> Iterator[Path]:
    """``make_spool`` for the time of a block. What processes that died meanwhile left goes with it."""
    spool, lock = make_spool(folder, fingerprint)
    try:
        yield spool
    finally:
        shutil.rmtree(spool, ignore_errors=True)
        lock.close()
        remove_dead(folder)


def is_full(error: OSError) -> bool:
    """Whether a disk, a user's quota or the limit of a file's size (``ulimit -f``) left no room to write."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def spool_error(folder: Path, error: OSError) -> StoreError:
    """What the operating system says about the spool, with the remedy."""
    if is_full(error):
        return StoreFull(
            f"no space left on the disk of {folder} ({os.strerror(error.errno or 0)}); "
            "free some, or set DALLE_SPOOL to another disk"
        )
    return StoreError(
        f"the spool folder {folder} cannot be used ({error.strerror}); set DALLE_SPOOL to a folder that can be written"
    )


def remove_dead(folder: Path) -> None:
    """Remove the folders of processes that are gone."""
    for old in folder.glob(f"{_SPOOL}*"):
        try:
            with (old / ".lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
        except FileNotFoundError:
            shutil.rmtree(old, ignore_errors=True)  # half removed by a process that died over it
        except OSError:
            continue  # held by a living process, or another user's
    for new in folder.glob(f"{_NEW}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - new.stat().st_mtime > _NEW_S:
                shutil.rmtree(new, ignore_errors=True)
