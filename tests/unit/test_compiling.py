"""Compiling for this machine is said when it happens, and works where the code cannot be kept."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba", reason="Numba is not installed")
from dalle_model.compiling import first_call

SOURCE = """
from dalle_model.compiling import compiled

@compiled
def inner(x):
    return x + 1

@compiled
def outer(x):
    return 2 * inner(x)
"""


class Fresh:
    """A module with two compiled functions, as a new process would load it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "kernels_of_a_test.py"
        if not self.file.exists():
            self.file.write_text(SOURCE)
        spec = importlib.util.spec_from_file_location("kernels_of_a_test", self.file)
        assert spec is not None and spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.parts = (module.inner, module.outer)

    def call(self) -> tuple[int, list[str]]:
        """The result of a first call, and what was said."""
        said: list[str] = []
        return first_call(self.parts[1], (3,), self.parts, said.append, "counting", "10 to 20 s"), said


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the module; nothing but its own ``__pycache__`` is used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    folder = tmp_path / "module"
    folder.mkdir()
    return folder


def test_compiling_is_said_once_and_loading_is_not(beside: Path) -> None:
    assert Fresh(beside).call() == (8, ["counting: compiling for this machine, once, 10 to 20 s"])
    again = Fresh(beside)
    assert again.call() == (8, []) and sum(again.parts[1].stats.cache_hits.values()) == 1


def test_where_no_folder_can_be_written_it_says_that_each_process_compiles(beside: Path, tmp_path: Path) -> None:
    for place in (beside / "__pycache__", tmp_path / "cache"):
        place.write_text("no folder")
    made, said = Fresh(beside).call()
    assert made == 8 and len(said) == 1 and "in each process" in said[0] and "NUMBA_CACHE_DIR" in said[0]


def test_code_that_cannot_be_kept_or_read_is_compiled_anew_and_the_folder_named(beside: Path) -> None:
    """A disk that is full, a folder that is gone, files of another user: all errors of one kind, after the import."""
    loaded = Fresh(beside)
    (beside / "__pycache__").rmdir()
    (beside / "__pycache__").write_text("no folder any more")
    made, said = loaded.call()
    assert made == 8 and str(beside / "__pycache__") in said[-1] and "each process compiles it anew" in said[-1]


def test_damaged_files_do_not_stop_the_drawing(beside: Path) -> None:
    assert Fresh(beside).call()[0] == 8
    for file in (beside / "__pycache__").glob("*.nbi"):
        file.write_bytes(b"cut")
    made, said = Fresh(beside).call()
    assert made == 8 and "UnpicklingError" in said[-1]


def test_an_error_of_the_arguments_is_raised(beside: Path) -> None:
    with pytest.raises(Exception, match=r"(?i)typing|cannot determine"):
        first_call((parts := Fresh(beside).parts)[1], ("text",), parts, lambda _: None, "counting", "")


def test_a_user_without_a_home_gets_no_folder_named_tilde(
    beside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "~")  # what is left of it where neither the environment nor the system knows one
    monkeypatch.chdir(tmp_path)
    (beside / "__pycache__").write_text("no folder")
    made, said = Fresh(beside).call()
    assert made == 8 and "in each process" in said[0] and not os.path.lexists(tmp_path / "~")
