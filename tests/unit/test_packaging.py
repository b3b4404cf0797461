"""The distribution: names, entry point, layout, and the README's promises."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import dalle_model
import flows
import tasks

ROOT = Path(__file__).resolve().parents[2]


def test_the_three_packages_come_from_one_place() -> None:
    """``flows`` and ``tasks`` are common words: a stranger's package of that name must not be mixed in."""
    parents = {Path(str(package.__file__)).resolve().parents[1] for package in (flows, tasks, dalle_model)}
    assert len(parents) == 1


def test_the_top_level_holds_what_the_project_promises_and_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        return  # not a git checkout: an unpacked archive
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    visible = {top for top in tops if not top.startswith(".")}
    assert visible == {"flows", "tasks", "dalle_model", "infra", "tests", "pyproject.toml", "README.md"}


def test_the_console_script_is_the_command_line() -> None:
    (script,) = [e for e in importlib.metadata.entry_points(group="console_scripts") if e.name == "dalle"]
    assert script.value == "flows.cli:main"


def test_no_module_hides_one_of_the_standard_library() -> None:
    ours = [
        p.stem
        for package in ("flows", "tasks", "dalle_model")
        for p in (ROOT / package).rglob("*.py")
        if p.stem != "__init__"
    ]
    assert not set(ours) & set(sys.stdlib_module_names)


def test_data_steps_start_without_torch_or_prefect() -> None:
    """A child process of ingest or curate pays for what it uses: both imports cost a second each."""
    code = "import sys, tasks.worker, tasks.ingest, tasks.curate; print([m for m in ('torch', 'prefect', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_library_does_not_need_prefect_or_buckets() -> None:
    code = (
        "import sys, pkgutil, importlib, dalle_model\n"
        "for m in pkgutil.walk_packages(dalle_model.__path__, 'dalle_model.'): importlib.import_module(m.name)\n"
        "print([m for m in ('prefect', 's3fs', 'fsspec.implementations.local') if m in sys.modules and m != 'fsspec'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "prefect" not in done.stdout and "s3fs" not in done.stdout


def test_the_readme_has_the_two_set_up_commands_first() -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M)
    assert "dalle run quickstart" in blocks[0] and "pip install" in blocks[0]
    assert "pytest" in blocks[1] and "pip install" in blocks[1]


def test_every_requirement_is_pinned_in_the_constraints() -> None:
    pinned = {
        re.split(r"[ =;]", line)[0].lower()
        for line in (ROOT / "infra/constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = {re.split(r"[\[><=;! ]", r)[0].lower() for r in importlib.metadata.requires("dalle-prefect") or []}
    assert wanted - {"dalle-prefect"} <= pinned
