"""The gallery and the report in a real browser: they work from a file, run nothing foreign, and ask the network nothing."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from support.browser import keep_screenshot, open_browser
from support.sample_pages import HOSTILE, picture, report_data, row, rows

from tasks.pages import gallery_html, report_html, shown

pytestmark = pytest.mark.browser


class Visit:
    """A page with all that it asked for and all that the browser complained about."""

    def __init__(self, browser, path: Path, *, width: int = 1440, height: int = 1000, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.set_default_timeout(15_000)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def visible_prompts(self) -> list[str]:
        return self.page.locator(".card:visible .prompt").all_inner_texts()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def gallery(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gallery") / "gallery.html"
    path.write_bytes(gallery_html(rows(per_prompt=4), title="Pictures", facts={"Model": "abcdef"}, tile_px=96))
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_bytes(report_html(report_data(HOSTILE[0])))
    return path


@pytest.fixture
def visit(browser, gallery):
    opened = Visit(browser, gallery)
    yield opened
    opened.page.close()


def test_search_and_tags_narrow_what_is_shown(visit):
    page = visit.page
    page.get_by_role("searchbox").fill("blue CIR")
    assert visit.visible_prompts() == ["a blue circle"]
    assert page.locator("#count").inner_text() == "1 prompt, 4 pictures"

    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="warm").click()
    page.get_by_role("button", name="square").click()
    assert visit.visible_prompts() == ["a red square", "a orange square"]

    page.get_by_role("searchbox").fill("nothing like this")
    assert visit.visible_prompts() == []
    page.get_by_role("button", name="Clear the search").click()
    assert len(visit.visible_prompts()) == 15 + 1 + len(HOSTILE)


def test_refused_prompts_can_be_singled_out_and_say_why(visit):
    visit.page.get_by_role("button", name="Refused", exact=True).click()
    assert visit.visible_prompts() == ["a picture of something forbidden"]
    assert "blocked word" in visit.page.locator(".refusal:visible").inner_text()


def test_a_click_opens_the_provenance_and_it_can_be_copied(visit):
    page = visit.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".card", has_text="a blue circle").locator(".tile").nth(2).click()
    detail = page.get_by_role("dialog")
    text = detail.inner_text()
    for fact in ("a blue circle", "3 of 4", "9007199254740995", "temperature 1, top k 64", "ab" * 32, "0.1.0"):
        assert fact in text
    detail.get_by_role("button", name="Copy provenance").click()
    detail.get_by_text("Copied.").wait_for()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert copied["prompt"] == "a blue circle"
    assert copied["seed"] == "9007199254740995"
    assert copied["model"] == "ab" * 32
    keep_screenshot(page, "gallery-provenance")


def test_the_picture_can_be_saved_with_the_bytes_it_was_made_with(visit):
    page = visit.page
    page.locator(".card", has_text="a red ring").locator(".tile").first.click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save picture").click()
    assert download.value.path().read_bytes() == picture("red", "ring")


def test_the_keyboard_reaches_everything(visit):
    page = visit.page
    page.keyboard.press("/")
    page.keyboard.type("green")
    assert len(visit.visible_prompts()) == 3
    page.locator(".card:visible .tile").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    detail = page.get_by_role("dialog")
    assert "2 of 4" in detail.inner_text()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert "a green square" in detail.inner_text() and "1 of 4" in detail.inner_text()
    page.keyboard.press("Escape")
    detail.wait_for(state="hidden")
    page.wait_for_function("document.activeElement.matches('.tile')")  # focus comes back to the picture last seen
    assert "a green square" in page.evaluate("document.activeElement.closest('.card').innerText")


def test_crisp_pixels_are_a_choice(visit):
    scaling = "getComputedStyle(document.querySelector('.tile img')).imageRendering"
    assert visit.page.evaluate(scaling) == "pixelated"
    visit.page.get_by_role("button", name="Smooth").click()
    assert visit.page.evaluate(scaling) == "auto"


def test_hostile_prompts_are_text_and_nothing_runs(visit):
    page = visit.page
    page.get_by_role("searchbox").fill("hostile")
    texts = page.locator(".card:visible .prompt").evaluate_all("all => all.map(one => one.textContent)")
    assert texts == [shown(prompt) for prompt in HOSTILE]
    for tile in page.locator(".card:visible .tile").all():
        tile.hover()
        tile.click()
        page.keyboard.press("Escape")
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert visit.complaints == []
    keep_screenshot(page, "gallery-hostile")


def test_the_report_answers_its_readers_questions_from_top_to_bottom(browser, report):
    visit = Visit(browser, report, width=1280)
    top = "(all) => all.map((one) => [one.id, one.getBoundingClientRect().top])"
    tops = dict(visit.page.locator("section").evaluate_all(top))
    asked = ["headlines", "compared", "worst", "copying", "samples-1", "curves", "metrics", "lineage"]
    assert sorted(asked, key=tops.__getitem__) == asked
    assert visit.page.locator("#worst .caption").text_content() == HOSTILE[0]
    assert visit.page.evaluate("typeof window.hacked") == "undefined"
    assert visit.complaints == []
    keep_screenshot(visit.page, "report-whole", full_page=True)
    visit.page.close()


@pytest.mark.parametrize("name", ["gallery", "report"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_a_page_fits_its_window_asks_for_nothing_and_breaks_no_rule(browser, request, name, scheme, width):
    visit = Visit(browser, request.getfixturevalue(name), width=width, height=900, scheme=scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    visit.page.mouse.wheel(0, 20_000)
    visit.page.wait_for_timeout(100)
    visit.page.evaluate("window.scrollTo(0, 0)")
    keep_screenshot(visit.page, f"{name}-{scheme}-{width}")
    assert [url for url in visit.requests if not url.startswith("data:")] == [request.getfixturevalue(name).as_uri()]
    seen = "[...document.images].filter((image) => image.getBoundingClientRect().top < innerHeight && image.src)"
    assert visit.page.evaluate(f"{seen}.every((image) => image.complete && image.naturalWidth > 0)")
    assert visit.complaints == []
    visit.page.close()


@pytest.mark.parametrize("name", ["gallery", "report"])
def test_the_policy_stops_a_script_style_picture_or_request_that_gets_in(browser, request, name):
    visit = Visit(browser, request.getfixturevalue(name))
    stopped = visit.page.evaluate(
        """async () => {
            const stopped = [];
            document.addEventListener("securitypolicyviolation", (event) => stopped.push(event.effectiveDirective));
            const add = (tag, fields) => document.body.append(Object.assign(document.createElement(tag), fields));
            add("script", { textContent: "window.hacked = 1" });
            add("style", { textContent: "body { display: none }" });
            add("img", { src: "http://127.0.0.1:9/x.png" });
            await fetch("http://127.0.0.1:9/").catch(() => null);
            await new Promise((done) => setTimeout(done, 200));
            return stopped;
        }"""
    )
    assert sorted(stopped) == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    assert visit.page.evaluate("typeof window.hacked") == "undefined"
    visit.page.close()


def test_three_thousand_pictures_stay_usable(browser, tmp_path):
    image = picture("red", "ring", px=64)
    batch = (row(f"prompt {i} of many", n, image=image, tags=f"tag{i % 7}") for i in range(750) for n in range(4))
    path = tmp_path / "many.html"
    path.write_bytes(gallery_html(chain(batch), title="Many", facts={}, tile_px=96))
    visit = Visit(browser, path)
    took = visit.page.evaluate(
        """async () => {
            const box = document.getElementById("search"), started = performance.now();
            for (const text of ["1", "12", "123", ""]) {
                box.value = text;
                box.dispatchEvent(new Event("input"));
                await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
            }
            return performance.now() - started;
        }"""
    )
    assert took < 60_000, f"four key strokes took {took:.0f} ms"
    assert visit.page.locator("#count").inner_text() == "750 prompts, 3,000 pictures"
    visit.page.close()
