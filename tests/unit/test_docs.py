"""The pages for users: every link leads somewhere, and every command they name exists."""

import re
from pathlib import Path

import pytest
import typer

from flows.cli import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "infra" / "running.md", *sorted((ROOT / "infra" / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_the_readme_names_every_page_for_users() -> None:
    text = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if page.name not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_on_a_page_exists(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    wrong = []
    for line in re.findall(r"^(?: {4}|\d\. )?(?:[A-Z_]+=\S+ )*dalle ([a-z][^#\n]*)", page.read_text(), re.MULTILINE):
        name, *words = line.split()
        if name not in commands:
            wrong.append(line)
            continue
        known = {option for parameter in commands[name].params for option in parameter.opts}
        wrong += [f"{name}: {word}" for word in words if word.startswith("--") and word.split("=")[0] not in known]
    assert wrong == []
