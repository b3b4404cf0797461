"""What the Prefect UI is given for each artifact, seen without a server."""

import base64
import io
import json
import random
import re

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from support.sample_pages import HOSTILE, picture

from tasks import ui
from tasks.artifacts import Manifest, ObjectRef
from tasks.examples import examples_table, read_examples
from tasks.markdown import MAX_PICTURE_BYTES, Card, escaped, key_of, small_picture
from tasks.pages import Neighbour, Picture, ReportData, Sample, Sheet
from tasks.store import Store
from tasks.ui import ProgressReporter, card_makers, publish

KEY = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


def manifest(
    *objects: ObjectRef, step: str = "curate", kind: str = "curated", stats: dict[str, object] | None = None
) -> Manifest:
    return Manifest(
        kind=kind,
        step=step,
        step_version=1,
        fingerprint="ab" * 32,
        config={},
        inputs=(),
        objects=objects,
        rows=90,
        stats=stats or {},
        facts={"seconds": 1.5, "device": "cpu"},
    )


def cards(of: Manifest, store: Store) -> dict[str, Card]:
    made = [make(of, store, "made: no artifact has this fingerprint") for make in card_makers(of)]
    return {card.key: card for card in made if card is not None}


def noise(px: int) -> bytes:
    image = Image.frombytes("RGB", (px, px), random.Random(0).randbytes(3 * px * px))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_a_curated_artifact_shows_its_funnel_reasons_splits_and_sheets(store):
    stats = {
        "funnel": [["pairs", 100], ["duplicates", 90]],
        "reasons": {"a": 3, "b": 7, "c": 0},
        "splits": {"train": 88, "valid": 2},
    }
    sheets = [
        store.put(picture("red", shape), ext="png", role=role)
        for shape, role in (("ring", "sheet.kept"), ("circle", "sheet.rejected"))
    ]
    shown = cards(manifest(*sheets, stats=stats), store)
    assert set(shown) == {"curate-summary", "curate-funnel", "curate-sheet-kept", "curate-sheet-rejected"}
    funnel = shown["curate-funnel"].markdown
    assert "| duplicates | 90 | 90.0 % |" in funnel
    assert funnel.index("| b | 7 |") < funnel.index("| a | 3 |")
    assert "| c |" not in funnel
    assert "| valid | 2 |" in funnel


def test_ingest_shows_rows_in_against_rows_kept(store):
    stats = {"rows_in": 10, "kept": 8, "rejected": 2, "reasons": {"not_an_image": 2}}
    shown = cards(manifest(step="ingest", kind="pairs", stats=stats), store)
    assert "| kept | 8 | 80.0 % |" in shown["ingest-funnel"].markdown
    assert shown["ingest-funnel"].description == "10 rows in, 8 kept"


def test_a_trained_artifact_shows_its_curve_as_a_picture(store):
    table = pa.table({"step": [1, 2, 3], "loss": [3.0, 2.0, None], "note": ["a", "b", "c"]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    curve = store.put(buffer.getvalue(), ext="parquet", role="curve", rows=3)
    markdown = cards(manifest(curve, step="fit_tokenizer", kind="tokenizer"), store)["fit-tokenizer-curve"].markdown
    embedded = re.search(r"\(data:image/png;base64,([^)]*)\)", markdown)
    assert embedded and Image.open(io.BytesIO(base64.b64decode(embedded[1]))).width > 800


FIGURES = {
    "recognisability": 0.74,
    "recognisability_low": 0.65,
    "recognisability_high": 0.82,
    "recognisability_heldout": 0.5,
    "loss_image_valid": 4.123456,
}


def report_data(*, samples: int = 8) -> ReportData:
    """Captions that fail, and two drawings beside training pictures."""
    pictures = tuple(Picture(label, picture("red", "ring", px=64)) for label in ("real", "tokenizer", "drawn"))
    worst = tuple(Sample(f"a | *ring* {n}", pictures, note="not as said: colour") for n in range(samples))
    near = Neighbour("a disc", picture("red", "circle"), picture("blue", "circle"), "a blue disc", 0.01, copied=True)
    far = Neighbour("a box", picture("red", "square"), picture("blue", "circle"), "a blue disc", 0.3, copied=False)
    return ReportData("t", "s", worst=Sheet("Where it fails", "", worst), neighbours=(near, far))


def evaluation_of(store: Store, *objects: ObjectRef) -> str:
    """The HTML of the card of an evaluation with these objects, and figures."""
    document = {"metrics": FIGURES, "protocol": {"seed": 3, "sampler": {"top_k": 7}, "features_sha256": "cd" * 32}}
    metrics = store.put(json.dumps(document).encode(), ext="json", role="metrics")
    stats = {"summary": "It draws <b>rings</b>."}
    shown = cards(manifest(metrics, *objects, step="evaluate", kind="evaluation", stats=stats), store)
    assert set(shown) == {"evaluate-report"}
    return MarkdownIt("commonmark").enable("table").render(shown["evaluate-report"].markdown)


def test_an_evaluation_is_one_card_with_summary_drawings_report_and_figures_with_intervals(store):
    report = store.put(b"<html>", ext="html", role="report")
    text = evaluation_of(store, report, store.put(picture("red", "ring"), ext="png", role="sheet.samples"))
    assert "It draws &lt;b&gt;rings&lt;/b&gt;." in text
    order = ("It draws", "data:image/png", store.url(report.key), "Figures: training", "Figures: new combinations",
             "What they mean", "How it was measured", "The run")  # fmt: skip
    assert [text.count(part) for part in order] == [1] * len(order)
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    row = r"<td>recognisability</td>\s*<td[^>]*>0.74</td>\s*<td[^>]*>0.65 to 0.82</td>\s*<td>higher</td>"
    assert re.search(row, text)
    assert text.count("<td>recognisability</td>") == 2  # of training captions and of new combinations
    assert "<td>loss image</td>" in text and "4.123 nats" in text
    assert "<strong>sampler: top k</strong>: 7" in text and "cd" * 6 in text and "cd" * 7 not in text


def test_the_worst_drawings_and_those_near_to_training_are_shown_as_small_pictures(store):
    examples = store.put(examples_table(report_data()), ext="parquet", role="examples")
    text = evaluation_of(store, examples)
    items = re.findall(r"<li><strong>(.*?)</strong>: (.*?)\s*<img src=\"(data:image/[^\"]*)\"", text, re.S)
    assert [caption for caption, _, _ in items] == [f"a | *ring* {n}" for n in range(6)] + ["a disc", "a box"]
    assert items[0][1] == "not as said: colour"
    assert "a blue disc" in items[6][1] and "a copy" in items[6][1] and "no copy" in items[7][1]
    sizes = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size for _, _, uri in items]
    assert sizes == [(248, 80)] * 6 + [(164, 80)] * 2
    assert "real, tokenizer, drawn" in text and "drawn, nearest in training" in text


def test_examples_come_back_as_they_were_written():
    data = report_data(samples=1)
    first, near, _ = read_examples(examples_table(data))
    assert data.worst is not None
    assert (first.section, first.caption, first.note) == ("fails", "a | *ring* 0", "not as said: colour")
    assert first.pictures == [p.image for p in data.worst.samples[0].pictures]
    assert (near.section, near.pictures) == ("copies", [data.neighbours[0].generated, data.neighbours[0].nearest])


def test_a_damaged_sheet_costs_an_evaluation_its_picture_and_not_its_figures(store):
    metrics = store.put(json.dumps({"metrics": {"recognisability": 0.74}}).encode(), ext="json", role="metrics")
    damaged = store.put(b"no picture", ext="png", role="sheet.samples")
    shown = cards(manifest(metrics, damaged, step="evaluate", kind="evaluation"), store)["evaluate-report"].markdown
    assert "cannot be shown" in shown and "data:" not in shown
    assert "| recognisability | 0\\.74 |" in shown


def test_damaged_examples_cost_an_evaluation_their_place_and_not_its_figures(store):
    text = evaluation_of(store, store.put(b"no table", ext="parquet", role="examples"))
    assert "The worst drawings cannot be shown: ArrowInvalid" in text and "<td>recognisability</td>" in text


@pytest.mark.parametrize("text", HOSTILE)
def test_text_from_outside_is_neither_markup_nor_html(text):
    table = f"| head |\n| --- |\n| {escaped(text)} |"
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"{table}\n\n{escaped(text)}")
    inline = [child.type for token in tokens for child in token.children or ()]
    assert set(inline) <= {"text", "text_special"}
    assert [token.type for token in tokens].count("tr_open") == 2
    assert not [
        token for token in tokens if token.type.startswith(("html", "heading", "fence", "code", "bullet", "hr"))
    ]


def test_escaped_text_reads_as_it_was():
    text = "50 % off: a|b *c* <d> [e](f) `g` \\ & 1. #h"
    tokens = MarkdownIt("commonmark").parse(escaped(text))
    assert "".join(child.content for child in tokens[1].children or ()) == text


@pytest.mark.parametrize("parts", [("fit_tokenizer", "sheet.kept"), ("curate", "Funnel"), ("a--b", "..c d")])
def test_keys_are_what_prefect_admits(parts):
    assert KEY.fullmatch(key_of(*parts))


def test_every_card_has_a_key_of_its_own_that_does_not_depend_on_the_artifact(store):
    sheet = store.put(picture("red", "ring"), ext="png", role="sheet")
    one = cards(manifest(sheet, step="generate", kind="generations", stats={"drawn": 3}), store)
    other = cards(manifest(sheet, step="generate", kind="generations", stats={"drawn": 4}), store)
    assert set(one) == set(other) == {"generate-summary", "generate-sheet"}
    assert all(KEY.fullmatch(key) for key in one)


def test_small_pictures_are_shown_byte_for_byte_and_large_ones_are_made_small():
    small = picture("red", "ring")
    assert small_picture(small) == small
    large = small_picture(noise(1500))
    assert len(large) <= MAX_PICTURE_BYTES and large.startswith(b"\xff\xd8\xff")


class Untouchable:
    """A store that must not be asked for anything."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the store was asked for {name}")


def test_outside_a_run_nothing_is_shown_and_nothing_is_read():
    publish(manifest(ObjectRef(key="k", sha256="0" * 64, bytes=1, role="sheet")), Untouchable())
    reporter = ProgressReporter("curate")
    reporter({"event": "progress", "done": 1, "total": 2, "unit": "rows"})
    reporter({"event": "log", "text": "hello"})


def test_a_server_that_is_gone_is_asked_once_for_an_artifact_and_said(monkeypatch, store):
    """Its client tries for a minute: a curation of five cards held the next step up for five, without a word."""
    tried: list[str] = []

    def refuse(markdown: str, *, key: str, description: str) -> None:
        tried.append(key)
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(ui, "_in_run", lambda: True)
    monkeypatch.setattr(ui, "create_markdown_artifact", refuse)
    sheets = [store.put(picture(color, "ring"), ext="png", role="sheet.kept") for color in ("red", "blue")]
    said: list[str] = []
    publish(manifest(*sheets, step="ingest", kind="pairs", stats={"rows_in": 2, "kept": 2}), store, say=said.append)
    assert len(tried) == 1
    assert said == [
        "Prefect's server is out of reach, so its UI does not show all of ingest abababababab, which is finished and kept"
    ]


def test_the_end_of_a_step_is_logged_once(monkeypatch):
    """Several pieces and the step itself each say that all is done."""
    said: list[str] = []
    monkeypatch.setattr(ui, "_log", lambda _, text: said.append(text))
    monkeypatch.setattr(ui, "_in_run", lambda: True)
    progress = ui.ProgressReporter("generate")
    monkeypatch.setattr(progress, "_show", lambda *_, **__: None)
    for done, total in ((8, 16), (16, 16), (16, 16), (16, 16), (20, 20)):
        progress({"event": "progress", "done": done, "total": total, "unit": "pictures"})
    assert [text.split(",")[0] for text in said] == [
        f"generate: {n} pictures" for n in ("8 of 16", "16 of 16", "20 of 20")
    ]
