"""Compiling functions for the processor at hand (Numba): it is said when it happens, and works where nothing can be kept.

The code of a function is kept on disk, beside its module where that can be written, else in the user's cache or in
``NUMBA_CACHE_DIR``. None of them may be there: an installation that cannot be written, a container that runs as a
user without a home, a full disk, files of another user. Then each process compiles anew.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core.event import Event, Listener, install_listener

Say = Callable[[str], None]


def compiled(function: Any) -> Any:
    """The function, compiled at its first call; its code is kept on disk where it can be."""
    # without the lock of Python; a division by zero gives an infinity, as in C, so that loops stay straight
    options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy", "boundscheck": False}
    compiler: Any = numba.njit
    if not _has_a_place(function):
        return compiler(**options)(function)
    try:
        return compiler(cache=True, **options)(function)
    except RuntimeError:  # no folder to keep it in
        return compiler(**options)(function)


def _has_a_place(function: Any) -> bool:
    """False where Numba would make a folder named ``~`` in the current one: the home of this user is not known."""
    named = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    if named or os.path.isabs(os.path.expanduser("~")):
        return True
    beside = Path(function.__code__.co_filename).parent
    folder = beside / "__pycache__"
    return os.access(folder if folder.exists() else beside, os.W_OK) and (folder.is_dir() or not folder.exists())


class _Announcer(Listener):
    """Says once that a function is being compiled; what was loaded from disk is not announced."""

    def __init__(self, say: Callable[[], None]) -> None:
        self._say, self._said = say, False

    def on_start(self, event: Event) -> None:
        """The outermost function is the first; those that it calls follow."""
        if not self._said:
            self._said = True
            self._say()

    def on_end(self, event: Event) -> None:
        """Nothing to say."""


def first_call(
    function: Any, arguments: tuple[Any, ...], parts: tuple[Any, ...], say: Say, what: str, takes: str
) -> Any:
    """Call a compiled function with arguments of new types: ``function(*arguments)``.

    say: told once, where it is really compiled and not loaded: "WHAT: compiling for this machine, once, TAKES".
    parts: the function and all compiled ones that it calls. Where their code cannot be read or kept, ``say`` is told
    why, and they are compiled for this process alone.
    """

    def announce() -> None:
        kept = function.stats.cache_path is not None
        often = (
            "once" if kept else "in each process, as no folder can be written to keep the code (set NUMBA_CACHE_DIR)"
        )
        say(f"{what}: compiling for this machine, {often}, {takes}")

    with install_listener("numba:compile", _Announcer(announce)):
        try:
            return function(*arguments)
        except Exception as error:  # OSError, or whatever reading a damaged file raises
            places = {str(path) for part in parts if (path := part.stats.cache_path)}
            if not places:
                raise
            for part in parts:
                part._cache.disable()  # the one switch there is; of Numba's own base class of caches
            made = function(*arguments)  # an error of ours comes again
            say(
                f"{what}: the compiled code cannot be read from or kept in {', '.join(sorted(places))} "
                f"({type(error).__name__}: {error}); each process compiles it anew until that is mended or NUMBA_CACHE_DIR names another folder"
            )
            return made
