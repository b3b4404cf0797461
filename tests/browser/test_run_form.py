"""A run started by a person: the form of a deployment in Prefect's UI, filled in and submitted in a real browser."""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from support.browser import SLOW_MS, expect, keep_screenshot, open_browser, wait_pictures
from support.prefect_server import Up
from support.tiny import TinyRun

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# The first test may wait for the server.
pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.timeout(1500)]

UIS = [pytest.param("/v2", id="v2"), pytest.param("", id="v1")]
# In the older one a run is started and looked at under --slow; by default it shows the form of the chain and a card.
STARTED_FROM = [UIS[0], pytest.param("", id="v1", marks=pytest.mark.slow)]
_TRIES, _TRY_S = 10, 30.0


@pytest.fixture(scope="module")
def model(machine: Up, tiny_run: TinyRun) -> str:
    """Fingerprint of a model in the machine's store."""
    tiny_run.copy(machine.store)
    return tiny_run.results["fit"].ref.fingerprint


def open_form(browser: "Browser", machine: Up, ui: str, deployment: str, height: int = 2000) -> "Page":
    """The form of a deployment, once its fields are there."""
    page = browser.new_page(viewport={"width": 1440, "height": height})
    page.set_default_timeout(SLOW_MS)
    page.goto(f"{machine.url}{ui}/deployments/deployment/{machine.deployment(deployment)['id']}/run")
    page.get_by_text("Parameters", exact=True).first.wait_for()
    page.get_by_text("store (Optional)", exact=True).first.wait_for()  # the last field
    return page


@pytest.mark.parametrize("ui", STARTED_FROM)
def test_a_run_started_from_the_form_draws_what_was_typed_and_shows_it(machine: Up, model: str, ui: str) -> None:
    prompt, name = f"typed in the form of {ui or '/v1'}", f"by-hand-{ui.strip('/') or 'v1'}-{time.monotonic_ns()}"
    with open_browser() as browser:
        page = open_form(browser, machine, ui, "generate/generate")
        page.locator("input").first.fill(name)
        page.locator("textarea").nth(0).fill(model)
        page.locator("textarea").nth(1).fill(prompt)
        expect(page.locator("input").first).to_have_value(name)
        expect(page.locator("textarea").nth(0)).to_have_value(model)
        expect(page.locator("textarea").nth(1)).to_have_value(prompt)
        keep_screenshot(page, f"prefect-form-generate{ui or '/v1'}")
        run = _submitted(page, machine, name)
        assert run["parameters"]["model"] == model
        assert run["parameters"]["config"]["prompts"][0] == prompt
        ended = machine.wait_run(run["id"])
        assert ended["state_type"] == "COMPLETED", f"{ended['state']}\n{machine.log_of(run['id'])}"

        page.set_viewport_size({"width": 1440, "height": 1000})
        page.goto(f"{machine.url}{ui}/runs/flow-run/{run['id']}")
        page.get_by_text(name).first.wait_for()
        # In the list of all pages there is one of that name, too.
        page.get_by_role("tablist").get_by_text("Artifacts", exact=True).click()
        page.get_by_text("Drawn from captions").last.wait_for()  # below the name of the sheet
        keep_screenshot(page, f"prefect-run{ui or '/v1'}")
        _see_picture(page, machine, ui, run["id"], "generate-sheet-samples")


@pytest.mark.parametrize("ui", UIS)
def test_the_form_of_the_whole_chain_names_every_section_and_shows_its_bounds(machine: Up, ui: str) -> None:
    with open_browser() as browser:
        page = open_form(browser, machine, ui, "pipeline/quickstart", height=8000)
        for section in (
            "where pairs come from",
            "which pairs are good enough",
            "Image tokenizer",
            "text + image transformer",
            "what is measured",
        ):
            expect(page.locator("body")).to_contain_text(section, use_inner_text=True)
        keep_screenshot(page, f"prefect-form-pipeline{ui or '/v1'}")


def _submitted(page: "Page", machine: Up, name: str) -> dict[str, Any]:
    """Submit, as a person does: again while nothing comes of it, since a page that still checks its fields drops a click."""
    from playwright.sync_api import TimeoutError as TooLate

    for _ in range(_TRIES):
        submit = page.get_by_role("button", name="Submit", exact=True).last
        if submit.is_visible():
            with suppress(TooLate):  # the page has gone on, after all
                submit.click(timeout=_TRY_S * 1000)
        deadline = time.monotonic() + _TRY_S
        while time.monotonic() < deadline:
            found: list[dict[str, Any]] = machine.api("/flow_runs/filter", {"flow_runs": {"name": {"any_": [name]}}})
            if found:
                return found[0]
            time.sleep(0.3)
    keep_screenshot(page, "prefect-form-not-submitted")
    pytest.fail(f"no run is called {name}; the page says: {page.locator('body').inner_text()[-2000:]}")


def _see_picture(page: "Page", machine: Up, ui: str, run_id: str, key: str) -> None:
    """Open an artifact's page; its picture must really be drawn."""
    rows = machine.api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}})
    page.goto(f"{machine.url}{ui}/artifacts/artifact/{rows[0]['id']}")
    picture = page.locator("img[src^='data:image/']").first
    picture.wait_for()
    wait_pictures(page)
    assert picture.evaluate("image => image.naturalWidth") > 50
    keep_screenshot(page, f"prefect-artifact-{key}{ui or '/v1'}")
