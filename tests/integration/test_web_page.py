"""The worklist in a real browser: Debian's Chromium, headless, on a real server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.live_site import (
    DEADLINE_MS,
    SIZE,
    LiveSite,
    ago,
    chromium_browser,
    live_site,
    needs_chromium,
    quiet_page,
)

if TYPE_CHECKING:
    from playwright import sync_api as playwright

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def chromium() -> Iterator[playwright.Browser]:
    with chromium_browser() as browser:
        yield browser


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LiveSite]:
    with live_site(tmp_path) as site:
        yield site


@pytest.fixture
def page(chromium: playwright.Browser, site: LiveSite) -> Iterator[playwright.Page]:
    with quiet_page(chromium, site) as page:
        yield page


def test_a_stat_study_comes_to_the_top_by_itself(site: LiveSite, page: playwright.Page) -> None:
    for number in range(1, 6):
        site.add(number, f"Calm{number}^X")
    page.goto(f"{site.address}/")
    page.evaluate("window.sameDocument = true")
    page.locator("#study-1\\.2\\.3\\.3 .study-link").focus()
    page.evaluate(
        "getSelection().selectAllChildren(document.querySelector('#study-1\\\\.2\\\\.3\\\\.2 .code'))"
    )
    site.add(9, "Meyer^Katharina", 0.97)
    page.locator("#lines tr:first-child[data-priority=STAT]").wait_for()
    assert "Meyer, Katharina" in page.locator("#lines tr:first-child").inner_text()
    assert page.evaluate("window.sameDocument")
    assert page.locator("#announcer").text_content() == "New STAT: Meyer, Katharina"
    assert page.title().startswith("(1 STAT)")
    assert page.locator("#tally .tally-count").first.inner_text() == "1"
    assert page.evaluate("document.activeElement.closest('tr').id") == "study-1.2.3.3"
    assert page.evaluate("String(getSelection()).trim()") == "ACC2"


def test_a_study_that_changes_moves_and_what_is_gone_goes(site: LiveSite, page: playwright.Page) -> None:
    site.add(1, "First^X", 0.9)
    late = site.add(2, "Late^X", None)
    page.goto(f"{site.address}/")
    line = page.locator(f'[id="study-{late}"]')
    assert "Receiving images" in line.inner_text()
    site.studies.read(late, at=ago(1), suspicion=0.55)
    page.locator(f'[id="study-{late}"][data-priority=HIGH]').wait_for()
    assert "55 %" in line.inner_text()
    assert page.locator("#lines tr").count() == 2
    page.evaluate("document.querySelector('#lines').append(document.createElement('tr'))")
    site.studies.deliver(at=ago(0))  # a change like any other
    page.locator("#lines tr").nth(2).wait_for(state="detached")


def test_a_lost_connection_is_said_and_ends(site: LiveSite, page: playwright.Page) -> None:
    site.add(1, "First^X", 0.9)
    page.goto(f"{site.address}/")
    alarm = page.locator("#alarm")
    assert not alarm.is_visible()
    site.stop()
    alarm.wait_for(state="visible")
    assert "may be out of date" in alarm.inner_text()
    assert "Connection lost" in page.locator("#freshness").inner_text()
    assert "First" in page.locator("#lines").inner_text()
    site.start()
    alarm.wait_for(state="hidden")
    assert "Updated" in page.locator("#freshness").inner_text()


def test_everything_by_keyboard(site: LiveSite, page: playwright.Page) -> None:
    site.add(1, "First^X", 0.9)
    uid = site.add(2, "Second^X", 0.9)
    page.goto(f"{site.address}/")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "Second, X"
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site.address}/studies/{uid}")
    shown = page.locator(".picture:visible")
    assert shown.locator("figcaption").inner_text().startswith("Summary of the reading")
    page.keyboard.press("ArrowRight")
    assert shown.locator("figcaption").inner_text().startswith("Slice 3 of 6 from below")
    assert page.locator("#announcer").text_content() == shown.locator("img").get_attribute("alt")
    assert page.locator("#next").is_disabled()
    page.keyboard.press("Home")
    assert page.locator(".strip [aria-current]").inner_text() == "Summary"
    page.locator("#next").focus()
    page.keyboard.press("Enter")
    assert "Slice 3" in page.locator(".strip [aria-current]").inner_text()
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")  # refuses a broken one
    page.keyboard.press("Escape")
    page.wait_for_url(f"{site.address}/")


def test_a_row_opens_its_study_by_mouse(site: LiveSite, page: playwright.Page) -> None:
    uid = site.add(1, "First^X", 0.9)
    page.goto(f"{site.address}/")
    page.locator("#lines .date").first.click()
    page.wait_for_url(f"{site.address}/studies/{uid}")


def test_an_open_study_page_says_that_the_study_has_changed(site: LiveSite, page: playwright.Page) -> None:
    uid = site.add(1, "First^X", None)
    page.goto(f"{site.address}/studies/{uid}")
    assert "no result" in page.locator(".score").inner_text()
    site.studies.read(uid, at=ago(1), suspicion=0.97)
    page.locator("#changed").wait_for(state="visible")
    page.locator("#changed a").click()
    page.locator(".verdict .chip-stat").wait_for()
    assert not page.locator("#changed").is_visible()


def test_a_broken_picture_is_said_so(site: LiveSite, page: playwright.Page) -> None:
    uid = site.add(1, "First^X", 0.9)
    for file in site.studies.results_dir.iterdir():
        file.write_bytes(b"no DICOM")
    page.goto(f"{site.address}/studies/{uid}")
    page.locator("figure.is-broken:visible").wait_for()


def test_it_fits_the_screen_and_script_in_a_name_is_text(site: LiveSite, page: playwright.Page) -> None:
    script = "<script>alert(1)</script>"
    uid = site.add(1, f"{script}{'Long' * 12}^Name", 0.9)
    site.add(2, "Plain^X", None)
    for path in ("/", f"/studies/{uid}"):
        page.goto(f"{site.address}{path}")
        assert script in page.locator("main").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture = page.locator(".picture:visible img").bounding_box()
    strip = page.locator(".strip").bounding_box()
    assert picture is not None
    assert strip is not None
    assert picture["height"] > 400
    assert strip["y"] + strip["height"] <= SIZE["height"]


def test_every_control_has_a_name_and_every_table_has_headings(site: LiveSite, page: playwright.Page) -> None:
    uid = site.add(1, "First^X", 0.9)
    for path in ("/", f"/studies/{uid}"):
        page.goto(f"{site.address}{path}")
        nameless = "[...document.querySelectorAll('a, button')].filter((e) => !e.textContent.trim()).length"
        assert page.evaluate(nameless) == 0
        assert page.evaluate("[...document.images].every((image) => image.hasAttribute('alt'))")
        headless = "[...document.querySelectorAll('th')].filter((cell) => !cell.scope).length"
        assert page.evaluate(headless) == 0
        assert page.locator("h1").count() == 1
        assert page.locator("html[lang=en]").count() == 1


def test_it_works_without_script(chromium: playwright.Browser, site: LiveSite) -> None:
    uid = site.add(1, "First^X", 0.9)
    context = chromium.new_context(viewport=SIZE, java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(DEADLINE_MS)
    page.goto(f"{site.address}/")
    page.get_by_role("link", name="First, X").wait_for()
    site.add(2, "Second^X", 0.9)
    page.get_by_role("link", name="Second, X").wait_for()  # the page reloads itself
    page.goto(f"{site.address}/studies/{uid}")
    assert page.locator(".picture:visible").count() == 2
    assert not page.locator("#next").is_visible()
    context.close()
