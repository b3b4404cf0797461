"""The gallery and the report in a real browser: they work from a file, run nothing foreign, and ask the network nothing."""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from support.browser import SLOW_MS, expect, keep_screenshot, open_browser, wait_pictures
from support.sample_pages import HOSTILE, picture, report_data, row, rows

from tasks.pages import gallery_html, report_html, shown

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("gallery")]  # one browser


class Visit:
    """A page with all that it asked for and all that the browser complained about."""

    def __init__(self, browser, path: Path, *, width: int = 1440, height: int = 1000, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page.set_default_timeout(SLOW_MS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def expect_prompts(self):
        return expect(self.page.locator(".card:visible .prompt"))


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
    visit.expect_prompts().to_have_text(["a blue circle"])
    expect(page.locator("#count")).to_have_text("1 prompt, 4 pictures")

    page.get_by_role("searchbox").fill("")
    page.get_by_role("button", name="warm").click()
    page.get_by_role("button", name="square").click()
    visit.expect_prompts().to_have_text(["a red square", "a orange square"])

    page.get_by_role("searchbox").fill("nothing like this")
    visit.expect_prompts().to_have_count(0)
    page.get_by_role("button", name="Clear the search").click()
    visit.expect_prompts().to_have_count(15 + 1 + len(HOSTILE))


def test_refused_prompts_can_be_singled_out_and_say_why(visit):
    visit.page.get_by_role("button", name="Refused", exact=True).click()
    visit.expect_prompts().to_have_text(["a picture of something forbidden"])
    expect(visit.page.locator(".refusal:visible")).to_contain_text("blocked word")


def test_a_click_opens_the_provenance_and_it_can_be_copied(visit):
    page = visit.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".card", has_text="a blue circle").locator(".tile").nth(2).click()
    detail = page.get_by_role("dialog")
    for fact in ("a blue circle", "3 of 4", "9007199254740995", "temperature 1, top k 64", "ab" * 32, "0.1.0"):
        expect(detail).to_contain_text(fact)
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
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("green")
    visit.expect_prompts().to_have_count(3)
    tiles = page.locator(".card:visible .tile")
    tiles.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("Enter")
    detail = page.get_by_role("dialog")
    expect(detail).to_contain_text("2 of 4")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(detail).to_contain_text("a green square")
    expect(detail).to_contain_text("1 of 4")
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    # Not to the picture that opened it, where the browser puts it first, but to the one last seen: the next prompt's.
    expect(tiles.nth(4)).to_be_focused()


def test_crisp_pixels_are_a_choice(visit):
    tile = visit.page.locator(".tile img").first
    expect(tile).to_have_css("image-rendering", "pixelated")
    visit.page.get_by_role("button", name="Smooth").click()
    expect(tile).to_have_css("image-rendering", "auto")


def test_hostile_prompts_are_text_and_nothing_runs(visit):
    page = visit.page
    page.get_by_role("searchbox").fill("hostile")
    visit.expect_prompts().to_have_count(len(HOSTILE))
    texts = page.locator(".card:visible .prompt").evaluate_all("all => all.map(one => one.textContent)")
    assert texts == [shown(prompt) for prompt in HOSTILE]
    for tile in page.locator(".card:visible .tile").all():
        tile.hover()
        tile.click()
        expect(page.get_by_role("dialog")).to_be_visible()
        wait_pictures(page, "#detail")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
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
    for y in ("document.body.scrollHeight", "0"):  # pictures are loaded when they come into sight
        visit.page.evaluate(f"window.scrollTo({{ top: {y}, behavior: 'instant' }})")
        wait_pictures(visit.page)
    keep_screenshot(visit.page, f"{name}-{scheme}-{width}")
    assert [url for url in visit.requests if not url.startswith("data:")] == [request.getfixturevalue(name).as_uri()]
    assert visit.complaints == []
    visit.page.close()


@pytest.mark.parametrize("name", ["gallery", "report"])
def test_the_policy_stops_a_script_style_picture_or_request_that_gets_in(browser, request, name):
    visit = Visit(browser, request.getfixturevalue(name))
    stopped = visit.page.evaluate(
        """async () => {
            const stopped = [];
            const all = new Promise((done) => document.addEventListener("securitypolicyviolation", (event) => {
                if (stopped.push(event.effectiveDirective) === 4) done();
            }));
            const add = (tag, fields) => document.body.append(Object.assign(document.createElement(tag), fields));
            add("script", { textContent: "window.hacked = 1" });
            add("style", { textContent: "body { display: none }" });
            add("img", { src: "http://127.0.0.1:9/x.png" });
            await fetch("http://127.0.0.1:9/").catch(() => null);
            await Promise.race([all, new Promise((done) => setTimeout(done, 60_000))]);
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
    for text in ("1", "12", "123", ""):
        visit.page.get_by_role("searchbox").fill(text)
        found = sum(text in f"prompt {i} of many\ntag{i % 7}" for i in range(750))
        expect(visit.page.locator("#count")).to_have_text(
            f"{found:,} {'prompt' if found == 1 else 'prompts'}, {4 * found:,} pictures"
        )
    visit.page.close()
