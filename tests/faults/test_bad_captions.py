"""Captions that go wrong: each ends with the outcome it deserves, none is lost, and none gets out of the report."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.bad_captions import CASES, SCRIPT, STRICT, captions
from support.bad_images import encoded, photo
from support.data_steps import Data, write_folder

from dalle_model.config import CurateConfig, IngestConfig
from tasks.artifacts import Manifest


def curated(folder: Path, texts: list[str], config: CurateConfig) -> tuple[Data, Manifest, Manifest]:
    """One picture of its own for every caption."""
    pictures = {f"{n}.png": encoded(photo(24, 24, seed=n), "PNG") for n in range(len(texts))}
    lines = [{"file_name": f"{n}.png", "text": text} for n, text in enumerate(texts)]
    data = Data(folder)
    pairs = data.ingest(IngestConfig(source=f"imagefolder:{write_folder(folder / 'set', pictures, lines)}"))
    return data, pairs, data.curate(config, pairs)


class Tags(HTMLParser):
    """Names and attributes of everything that a browser would take for an element."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_every_bad_caption_has_the_outcome_it_deserves_and_stays_text(tmp_path: Path) -> None:
    data, pairs, manifest = curated(tmp_path, [case.caption for case in CASES], CurateConfig(**STRICT))
    assert pairs.rows == len(CASES)
    key_of = {f"{n}.png": case for n, case in enumerate(CASES)}
    ledger = {row["key"]: row["reason"] or "kept" for row in data.rows(manifest, "ledger")}
    assert {key_of[key].caption[:40]: outcome for key, outcome in ledger.items()} == {
        case.caption[:40]: case.outcome for case in CASES
    }
    names = {row["id"]: row["key"] for row in data.rows(pairs, "pairs")}
    for row in data.rows(manifest, "curated"):
        case = key_of[names[row["id"]]]
        assert row["caption"] == (case.goes_on or case.caption)
    assert manifest.stats["personal_data"] == {"address": 1, "card": 1, "email": 1, "phone": 1}
    page = data.store.read(manifest.object_of("report")).decode()
    tags = Tags()
    tags.feed(page)
    assert not tags.seen & {"script", "iframe", "object", "form", "a href"}
    assert not {name for name in tags.attributes if name.startswith("on")}
    assert SCRIPT not in page and "&lt;script&gt;" in page
    assert "jane@example.org" not in page, "the report shows what goes on"
    assert re.search(r'http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;', page)


@pytest.mark.parametrize("seed", [1, 2])
def test_of_any_captions_no_row_is_unaccounted_for(tmp_path: Path, seed: int) -> None:
    config = CurateConfig(languages="en", max_mined_boilerplate=0.9, valid_share=0)
    data, pairs, manifest = curated(tmp_path, captions(seed), config)
    ingested = data.rows(pairs, "ledger")
    assert len(ingested) == 60 and sum(row["kept"] for row in ingested) == pairs.rows
    ledger = data.rows(manifest, "ledger")
    assert len(ledger) == pairs.rows
    assert [row["id"] for row in ledger] == [row["id"] for row in data.rows(pairs, "pairs")]
    assert sum(row["kept"] for row in ledger) == manifest.rows
    assert all(row["reason"] and row["rule"] for row in ledger if not row["kept"])
