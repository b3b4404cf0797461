"""An evaluation's card in both of Prefect's user interfaces: nothing of it is cut off, and its pictures are drawn."""

import re

import pytest
from support.browser import SLOW_MS, expect, keep_screenshot, open_browser, wait_pictures
from support.prefect_server import Up
from support.tiny import TinyRun

from tasks.evaluation_card import evaluation_card

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.timeout(1500)]  # it may wait for the server


@pytest.mark.parametrize("ui", ["/v2", ""], ids=["v2", "v1"])
def test_an_evaluations_card_fits_a_window_of_1300_px_and_shows_the_worst_drawings(
    machine: Up, tiny_run: TinyRun, ui: str
) -> None:
    card = evaluation_card(tiny_run.manifest("evaluate"), tiny_run.store, "made: no artifact has this fingerprint")
    body = {"key": card.key, "type": "markdown", "description": card.description, "data": card.markdown}
    made = machine.api("/artifacts/", body)
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 4000})
        page.set_default_timeout(SLOW_MS)
        page.goto(f"{machine.url}{ui}/artifacts/artifact/{made['id']}")
        page.locator("img[src^='data:image/']").nth(6).wait_for()  # the sheet, two that fail, and some near to training
        tables = page.locator("table")
        wanted = len(re.findall(r"^\| -", card.markdown, re.MULTILINE))
        assert wanted > 1
        expect(tables).to_have_count(wanted)  # none is shown as text
        wait_pictures(page)  # each moves what is below or beside it
        page.evaluate("document.fonts.ready.then(() => null)")
        text = page.get_by_text("This model was trained on").first.bounding_box()
        assert text is not None
        boxes = [tables.nth(i).bounding_box() for i in range(tables.count())]
        keep_screenshot(page, f"prefect-artifact-{card.key}{ui or '/v1'}")
        pictures = page.locator("img[src^='data:image/']")
        widths = [pictures.nth(i).evaluate("image => image.naturalWidth") for i in range(pictures.count())]
    right = text["x"] + text["width"]
    assert [box["x"] + box["width"] for box in boxes if box and box["x"] + box["width"] > right + 1] == []
    assert widths[1:3] == [248, 248] and set(widths[3:]) == {164}
