"""Between the worklist and the page of a study, and what a page shows while the world changes around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ich_node.database.reviews import Verdict, add_review
from tests.live_site import (
    NOW,
    LiveSite,
    ago,
    chromium_browser,
    live_site,
    needs_chromium,
    quiet_page,
    wait_for_title,
)

if TYPE_CHECKING:
    from playwright import sync_api as playwright

pytestmark = needs_chromium

FOCUSED = "document.activeElement.textContent"


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


def say(site: LiveSite, study: str, verdict: Verdict) -> None:
    with site.studies.database.writing() as session:
        add_review(session, study_instance_uid=study, verdict=verdict, reviewer="Dr. Adams", now=NOW)


def test_a_study_leads_back_to_the_list_that_it_was_opened_from(
    site: LiveSite, page: playwright.Page
) -> None:
    for number in (1, 2, 3):
        site.add(number, f"Bleed^{number}", 0.9)
    site.add(4, "Normal^X")
    page.goto(f"{site.address}/?priority=STAT")
    for key in ("j", "j", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url("**/studies/1.2.3.2")
    assert page.locator(".back").get_attribute("href") == "/?priority=STAT"
    page.keyboard.press("Escape")
    page.wait_for_url("**/?priority=STAT")
    page.locator("a:focus", has_text="Bleed, 2").wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url("**/studies/1.2.3.2")
    page.keyboard.press("r")
    assert page.evaluate(FOCUSED) == "Seen"
    page.keyboard.press("Enter")
    page.locator(".reviewed").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_url("**/?priority=STAT")
    page.keyboard.press("j")  # the next one is on top
    assert page.evaluate(FOCUSED) == "Bleed, 1"


def test_keys_that_are_turned_off_are_so_on_the_page_of_a_study_too(
    site: LiveSite, page: playwright.Page
) -> None:
    uid = site.add(1, "Bleed^X", 0.9)
    page.goto(f"{site.address}/")
    page.keyboard.press("?")
    page.get_by_label("Letters, digits and signs act as keys").press("Space")
    page.goto(f"{site.address}/studies/{uid}")
    page.locator(".has-script").wait_for()
    page.keyboard.press("r")
    assert page.evaluate("document.activeElement === document.body")
    page.keyboard.press("Escape")
    page.wait_for_url(f"{site.address}/")


def test_the_title_counts_what_nobody_has_seen(site: LiveSite, page: playwright.Page) -> None:
    uid = site.add(1, "Bleed^X", 0.9)
    site.add(2, "Normal^X")
    page.goto(f"{site.address}/")
    wait_for_title(page, "(1 STAT)")
    say(site, uid, Verdict.SEEN)
    wait_for_title(page, "Worklist")
    say(site, uid, Verdict.UNSEEN)
    wait_for_title(page, "(1 STAT)")
    page.goto(f"{site.address}/?priority=ROUTINE")
    wait_for_title(page, "(1 STAT)")
    site.add(3, "Bleed^Y", 0.9)
    wait_for_title(page, "(2 STAT)")
    assert page.locator("#announcer").inner_text() == "STAT that this list does not show: 2"


@pytest.mark.parametrize(
    ("status", "words"), [(200, "What came is no answer"), (502, "The node is not reached: 502.")]
)
def test_the_answer_of_something_between_is_no_list(
    site: LiveSite, page: playwright.Page, status: int, words: str
) -> None:
    site.add(1, "Bleed^X", 0.9)
    page.route(
        "**/worklist", lambda r: r.fulfill(status=status, content_type="text/html", body="<p>Proxy</p>")
    )
    page.goto(f"{site.address}/")
    alarm = page.locator("#alarm")
    alarm.wait_for(state="visible")
    assert alarm.inner_text().startswith(words)
    assert "may be out of date" in alarm.inner_text()
    page.unroute("**/worklist")
    alarm.wait_for(state="hidden")


def test_a_part_of_a_page_that_was_clicked_stays_current(site: LiveSite, page: playwright.Page) -> None:
    site.add(1, "Arriving^X", None)
    page.goto(f"{site.address}/operations")
    page.locator("#waiting h2").click()
    link = page.locator("#waiting").get_by_role("link", name="Receiving images")
    link.focus()
    site.add(2, "Arriving^Y", None)
    page.locator("#waiting td.count", has_text="2").wait_for()
    assert page.evaluate(FOCUSED) == "Receiving images"


def test_a_review_does_not_hide_that_the_result_is_another_one_now(
    site: LiveSite, page: playwright.Page
) -> None:
    uid = site.add(1, "Normal^X")
    page.goto(f"{site.address}/studies/{uid}")
    page.locator(".has-script").wait_for()
    page.route("**/version", lambda route: route.abort())
    site.studies.receive(uid, at=ago(1), series=2)  # unread images: a person must look
    page.get_by_role("button", name="Seen", exact=True).click()
    page.locator(".reviewed").wait_for()
    assert "ROUTINE" in page.locator(".verdict").inner_text()
    page.unroute("**/version")
    page.locator("#changed").wait_for(state="visible")


def test_why_a_review_was_not_taken_is_said(site: LiveSite, page: playwright.Page) -> None:
    uid = site.add(1, "Bleed^X", 0.9)
    page.goto(f"{site.address}/studies/{uid}")
    page.locator(".has-script").wait_for()
    page.route(
        "**/review", lambda r: r.fulfill(status=401, content_type="text/plain", body="Log in first.\n")
    )
    page.get_by_role("button", name="Seen", exact=True).click()
    page.locator("#review-fault").wait_for()
    assert page.locator("#review-fault").inner_text() == "Log in first."


@pytest.mark.parametrize("width", [1366, 1093, 1024, 800, 683])
def test_a_name_is_read_on_a_narrow_screen(site: LiveSite, page: playwright.Page, width: int) -> None:
    """1366 pixels at 125 % are 1093, at 200 % 683."""
    site.add(1, "Longfamilyname^Firstname^Middle", 0.9)
    page.set_viewport_size({"width": width, "height": 768})
    page.goto(f"{site.address}/")
    name = page.locator(".c-patient").bounding_box()
    assert name is not None
    assert name["width"] > 120
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
