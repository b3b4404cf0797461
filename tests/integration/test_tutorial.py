"""The tutorial works as it is written: its commands are read from the page and run, on pictures drawn here."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from support.commands import dalle
from support.data_steps import write_folder
from support.in_process import steps_in_this_process
from support.tiny import SETS

PAGE = Path(__file__).parents[2] / "infra" / "docs" / "your-own-images.md"
COLOURS, SHAPES = ("red", "blue", "green", "orange", "purple"), ("ellipse", "rectangle")
# Smaller, so that a minute becomes seconds; the folder and everything else is as the page has it.
TINY = [word for text in (*SETS, "ingest.limit=0") if not text.startswith("ingest.limit=9") for word in ("--set", text)]


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line]


def drawn(folder: Path) -> Path:
    """Sixty captioned shapes, one of them twice under another name, and one file that is no picture."""
    pictures, lines = {}, []
    for n in range(60):
        colour, shape = COLOURS[n % 5], SHAPES[n % 2]
        image = Image.new("RGB", (48, 40), "white")
        getattr(ImageDraw.Draw(image), shape)((2 + n % 9, 3 + n % 7, 24 + n % 20, 26 + n % 11), fill=colour)
        path = folder / "scratch.png"
        folder.mkdir(exist_ok=True)
        image.save(path)
        pictures[f"{n:04d}.png"] = path.read_bytes()
        path.unlink()
        lines.append({"file_name": f"{n:04d}.png", "text": f"a {colour} {shape}", "tags": "shape, drawing"})
    pictures |= {"again.png": pictures["0001.png"], "broken.png": b"no picture"}
    lines += [{"file_name": name, "text": f"the file {name}"} for name in ("again.png", "broken.png")]
    return write_folder(folder, pictures, lines)


def test_the_five_commands_of_the_tutorial_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn(tmp_path / "my-pictures")
    page = commands()
    assert [command[:2] for command in page] == [["dalle", w] for w in ("ingest", "curate", "run", "generate", "ls")]
    said = {}
    for _, *words in page:
        name = words[0]
        if name == "run":
            words = [*("tiny" if word == "quickstart" else word for word in words), *TINY, "--plain"]
        elif name != "ls":
            words = [*words, *TINY, "--preset", "tiny"]
        with steps_in_this_process():
            said[name] = dalle(*words, "--json")
        assert said[name].code == 0, (words, said[name].err)
    made = said["run"].payload["artifacts"]
    assert made["ingest"]["reused"] and made["curate"]["reused"], "the chain goes on from what the first commands made"
    assert made["ingest"]["fingerprint"] == said["ingest"].payload["artifacts"]["ingest"]["fingerprint"]
    assert made["ingest"]["rows"] == 61 and made["encode"]["rows"] > made["curate"]["rows"]
    assert len(list((tmp_path / "outputs" / "drawn").glob("*.png"))) >= 16
    for page_name in ("report", "gallery", "contact_sheet"):
        assert Path(said["run"].payload[page_name]).is_file()
    assert len(said["ls"].payload["artifacts"]) == 8
