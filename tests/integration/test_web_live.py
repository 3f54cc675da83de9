"""The worklist as it is worked with: live, filtered, by keyboard; and the pages for who keeps the node running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

import ich_node.web.events
import ich_node.web.operations_routes
import ich_node.web.worklist_routes
from ich_node.database.reviews import Verdict, add_review
from ich_node.errors import RejectionReason
from ich_node.findings import StudyState
from tests.axe import violations
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
from tests.receiver_process import wait_until
from tests.screenshots import assert_looks_like

if TYPE_CHECKING:
    from playwright import sync_api as playwright

pytestmark = needs_chromium

FROZEN = datetime(2026, 11, 21, 14, 0, tzinfo=UTC)
HEARD = "performance.getEntriesByType('resource').some((entry) => entry.name.endsWith('/worklist'))"
WITHIN_S = 2.0
"""A new STAT study stands on top of an open page so long after its commit."""


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


def names(page: playwright.Page) -> list[str]:
    return page.locator("#lines .study-link").all_inner_texts()


def wait_for_names(page: playwright.Page, wanted: list[str]) -> None:
    """Until the list shows these: where the machine is slow, what was asked before may still come."""
    wait_until(lambda: names(page) == wanted, f"the list shows {wanted}", DEADLINE_MS / 1000)


def open_list(page: playwright.Page, site: LiveSite, query: str = "") -> None:
    """Open the worklist and wait until it is live."""
    with page.expect_response(lambda r: "/worklist" in r.url):
        page.goto(f"{site.address}/{query}")


def fill(site: LiveSite) -> None:
    """Studies of every priority and state, at times that do not move."""
    studies = site.studies
    for number, name, suspicion, minutes in (
        (1, "Phantom^Normal^One", 0.02, 180),
        (2, "Phantom^Normal^Two", 0.05, 150),
        (3, "Phantom^Bleed", 0.973, 11),
        (4, "Phantom^Second^Bleed", 0.91, 4),
        (5, "Phantom^Perhaps", 0.55, 33),
        (6, "Phantom^Localizer", None, 70),
        (7, "Phantom^Failed", None, 50),
    ):
        site.add(number, name, suspicion, at=FROZEN - timedelta(minutes=minutes))
    for uid, state, reason in (
        ("1.2.3.6", StudyState.NOT_READ, RejectionReason.LOCALIZER),
        ("1.2.3.7", StudyState.FAILED, RejectionReason.INTERNAL_ERROR),
    ):
        studies.reject(uid, at=FROZEN - timedelta(minutes=40), reason=reason, detail="why", state=state)
    studies.deliver(at=FROZEN - timedelta(minutes=3))
    site.add(8, "Phantom^Arriving", None, at=FROZEN - timedelta(minutes=1))
    with studies.database.writing() as session:
        add_review(
            session, study_instance_uid="1.2.3.2", verdict=Verdict.SEEN, reviewer="Dr. Adams", now=FROZEN
        )


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages' clock stands still."""
    for module in (ich_node.web.worklist_routes, ich_node.web.operations_routes):
        monkeypatch.setattr(module, "now", lambda: FROZEN)


# live


def test_a_stat_study_is_on_top_of_an_open_page_within_two_seconds(
    site: LiveSite, page: playwright.Page
) -> None:
    for number in range(1, 6):
        site.add(number, f"Calm{number}^X")
    open_list(page, site)
    page.evaluate("""() => {
      const lines = document.getElementById("lines");
      new MutationObserver(() => {
        if (lines.rows[0]?.dataset.priority === "STAT") window.onTopAt ??= Date.now();
      }).observe(lines, { childList: true, subtree: true, attributes: true });
      window.sameDocument = true;
    }""")
    late = site.add(9, "Late^X", None)
    page.locator(f'[id="study-{late}"]').wait_for()
    site.studies.read(late, at=ago(1), suspicion=0.97)
    committed = time.time()
    page.locator("#lines tr:first-child[data-priority=STAT]").wait_for()
    assert page.evaluate("window.onTopAt") / 1000 - committed < WITHIN_S
    assert page.evaluate("window.sameDocument")
    assert page.locator("#announcer").text_content() == "New STAT: Late, X"


def test_one_page_of_a_browser_listens_for_all(
    chromium: playwright.Browser, site: LiveSite, page: playwright.Page
) -> None:
    streams: list[str] = []
    context = page.context
    context.on("request", lambda request: streams.append(request.url) if "/events" in request.url else None)
    others = [context.new_page() for _ in range(6)]  # a browser opens six connections to a server
    open_list(page, site)
    for other in others:
        open_list(other, site)
    site.add(1, "Bleed^X", 0.97)
    for each in (page, *others):
        each.locator("#lines tr[data-priority=STAT]").wait_for()
    assert len(streams) == 1
    page.close()
    site.add(2, "Second^X", 0.97)
    for other in others:
        other.locator('[id="study-1.2.3.2"][data-priority=STAT]').wait_for()
    assert len(streams) == 2


def test_a_page_that_is_told_nothing_asks(
    site: LiveSite, page: playwright.Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ich_node.web.events.Changes, "is_full", True)
    open_list(page, site)
    site.add(1, "Bleed^X", 0.97)
    page.locator("#lines tr[data-priority=STAT]").wait_for()
    assert not page.locator("#alarm").is_visible()


def test_the_server_stops_at_once_though_a_page_is_open(site: LiveSite, page: playwright.Page) -> None:
    open_list(page, site)
    with httpx.stream("GET", f"{site.address}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["x-accel-buffering"] == "no"
        assert "no-store" in stream.headers["cache-control"]
        lines = stream.iter_lines()
        assert any(line == "event: change" for line in lines)
        began = time.monotonic()
        site.stop()
        assert time.monotonic() - began < 3
        assert not any("event:" in line for line in lines)
    page.locator("#alarm").wait_for()
    site.start()
    page.locator("#alarm").wait_for(state="hidden")


# filters


def test_filters_stand_in_the_address_and_everything_hidden_is_named(
    site: LiveSite, page: playwright.Page
) -> None:
    fill(site)
    open_list(page, site)
    assert len(names(page)) == 8
    page.get_by_role("checkbox", name="MEDIUM").check()
    page.wait_for_url("**/?priority=MEDIUM")
    page.locator("#notices .notice-stat").wait_for()
    wait_for_names(page, ["Phantom, Localizer", "Phantom, Failed", "Phantom, Arriving"])
    notices = page.locator("#notices").inner_text()
    assert "2 studies that nobody has seen are not on this list" in notices
    assert "Filtered" in notices
    page.get_by_label("State").select_option("FAILED")
    page.wait_for_url("**/?priority=MEDIUM&state=FAILED")
    page.locator("#lines tr").nth(1).wait_for(state="detached")
    assert page.locator("#announcer").text_content() == "1 studies shown"
    page.reload()
    assert names(page) == ["Phantom, Failed"]
    assert page.get_by_role("checkbox", name="MEDIUM").is_checked()
    assert page.get_by_label("State").input_value() == "FAILED"
    site.add(9, "Bleed^X", 0.97)
    page.locator("#notices", has_text="3 studies that nobody has seen").wait_for()
    page.get_by_role("link", name="Show them").click()
    page.locator("#lines tr").nth(2).wait_for()
    assert {*names(page)} == {"Phantom, Bleed", "Phantom, Second Bleed", "Bleed, X"}


def test_search_and_other_conditions(site: LiveSite, page: playwright.Page) -> None:
    fill(site)
    site.add(20, "Today^X", at=datetime.now(UTC) - timedelta(minutes=10))
    open_list(page, site)
    page.get_by_label("Search").press_sequentially("perHAPS")
    page.wait_for_url("**/?q=perHAPS")
    wait_for_names(page, ["Phantom, Perhaps"])
    page.get_by_label("Search").fill("%")
    page.locator("#below", has_text="No study fits").wait_for()
    page.get_by_label("Search").fill("ACC7")
    wait_for_names(page, ["Phantom, Failed"])
    page.get_by_label("Search").fill("")
    page.get_by_label("Received within").select_option("1h")
    page.wait_for_url("**/?within=1h")
    wait_for_names(page, ["Today, X"])
    page.get_by_label("Station").fill("CT_OTHER")
    page.locator("#below", has_text="No study fits").wait_for()
    page.get_by_label("Station").fill("CT_ER")
    wait_for_names(page, ["Today, X"])


def test_what_is_left_out_is_on_the_next_page(
    site: LiveSite, page: playwright.Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ich_node.web.worklist_routes, "LINES", 3)
    fill(site)
    open_list(page, site)
    seen = names(page)
    assert len(seen) == 3
    for _ in range(2):
        page.get_by_role("link", name="Older and less urgent studies").click()
        page.locator("#notices", has_text="A later page").wait_for()
        seen += names(page)
    assert page.get_by_role("link", name="Older and less urgent studies").count() == 0
    assert sorted(seen) == sorted({*seen})
    assert len(seen) == 8
    assert "2 studies that nobody has seen are not on this list" in page.locator("#notices").inner_text()
    page.get_by_role("link", name="Back to its top").click()
    page.wait_for_url(f"{site.address}/")


def test_filters_work_without_script(chromium: playwright.Browser, site: LiveSite) -> None:
    fill(site)
    context = chromium.new_context(viewport=SIZE, java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(DEADLINE_MS)
    page.goto(f"{site.address}/")
    assert not page.locator("#help-open").is_visible()
    page.get_by_role("checkbox", name="HIGH").check()
    page.get_by_label("Search").fill("phantom")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**/?priority=HIGH*q=phantom")
    wait_for_names(page, ["Phantom, Perhaps"])
    context.close()


def test_a_filter_that_is_not_understood_is_said_so(site: LiveSite) -> None:
    answer = httpx.get(f"{site.address}/?priority=URGENT")
    assert answer.status_code == 400
    assert answer.text.count("\n") == 1
    assert "cannot be filtered by priority='URGENT'" in answer.text


# keyboard


def test_every_control_by_keyboard(site: LiveSite, page: playwright.Page) -> None:
    fill(site)
    open_list(page, site)
    focused = "document.activeElement.textContent"
    for key, name in (
        ("j", "Phantom, Bleed"),
        ("ArrowDown", "Phantom, Second Bleed"),
        ("k", "Phantom, Bleed"),
        ("End", "Phantom, Normal Two"),
        ("ArrowUp", "Phantom, Normal One"),
        ("Home", "Phantom, Bleed"),
    ):
        page.keyboard.press(key)
        assert page.evaluate(focused) == name, key
    for key, priority in (("1", "STAT"), ("2", "HIGH"), ("3", "MEDIUM"), ("4", "ROUTINE")):
        page.keyboard.press(key)
        page.wait_for_url(f"**/?priority={priority}")
        page.keyboard.press(key)
        page.wait_for_url(f"{site.address}/")
    page.keyboard.press("u")
    page.wait_for_url("**/?unreviewed=1")
    page.keyboard.press("Escape")
    page.wait_for_url(f"{site.address}/")
    page.keyboard.press("/")
    page.keyboard.type("perhaps 5 u j")
    page.wait_for_url("**/?q=perhaps*")
    page.keyboard.press("Escape")
    page.wait_for_url(f"{site.address}/")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("1.2.3.5")
    page.locator("#lines tr").nth(1).wait_for(state="detached")
    page.keyboard.press("Enter")
    assert page.evaluate(focused) == "Phantom, Perhaps"
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site.address}/studies/1.2.3.5")


def test_help_names_the_keys_and_turns_them_off(site: LiveSite, page: playwright.Page) -> None:
    fill(site)
    open_list(page, site)
    page.keyboard.press("?")
    help_ = page.get_by_role("dialog", name="Keys")
    help_.wait_for()
    shown = help_.locator("kbd").all_inner_texts()
    assert {*shown} == {"↓", "↑", "j", "k", "Home", "End", "Enter", "/", "1", "2", "3", "4", "u", "Esc", "?"}
    page.keyboard.press("1")
    assert page.url == f"{site.address}/"
    page.get_by_label("Letters, digits and signs act as keys").press("Space")
    page.keyboard.press("Escape")
    help_.wait_for(state="hidden")
    page.keyboard.press("1")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "Phantom, Bleed"
    assert page.url == f"{site.address}/"
    page.reload()
    page.keyboard.press("?")
    assert not help_.is_visible()
    page.get_by_role("button", name="Keys").press("Enter")
    help_.wait_for()


def test_focus_stays_near_a_study_that_leaves_the_list(site: LiveSite, page: playwright.Page) -> None:
    fill(site)
    open_list(page, site, "?priority=MEDIUM")
    page.locator('[id="study-1.2.3.8"] .study-link').focus()
    site.studies.read("1.2.3.8", at=FROZEN, suspicion=0.97)
    page.locator('[id="study-1.2.3.8"]').wait_for(state="detached")
    assert page.evaluate("document.activeElement.textContent") == "Phantom, Failed"


# operations


def test_operations_page_tells_how_the_node_does(site: LiveSite, page: playwright.Page, frozen: None) -> None:
    fill(site)
    studies = site.studies
    site.add(21, "Phantom^Slow", None, at=FROZEN - timedelta(minutes=30))
    studies.read("1.2.3.21", at=FROZEN - timedelta(minutes=20), suspicion=0.9)
    studies.deliver(at=FROZEN, refusal="0xC123 cannot understand")
    page.goto(f"{site.address}/operations")
    main = page.locator("main")
    chart = page.get_by_role("img")
    assert chart.get_attribute("aria-label") == (
        "9 studies received and 6 read in the last 24 hours; most in the hour from "
        f"{(FROZEN - timedelta(hours=1)).astimezone():%H:%M}: 6."
    )
    hour = page.locator("#latency tbody tr").first
    assert hour.inner_text().split("\t")[:5] == ["1 h", "4", "30 s", "10 min 00 s", "10 min 00 s"]
    assert hour.get_by_role("link").get_attribute("href") == "/studies/1.2.3.21"
    assert "Receiving images\t1" in main.inner_text()
    assert page.locator("#deliveries .bad").inner_text() == "✕ 3"
    reasons = page.locator("#failures tbody").inner_text()
    assert "Reading failed: a fault of this node; its log has the details\t1" in reasons
    assert "Not read: localizer\t1" in reasons
    assert "free; no low-water mark is set" in main.inner_text()
    assert "vicar-attention-v1" in page.locator("#models").inner_text()
    site.add(22, "Phantom^Arriving", None, at=FROZEN)
    page.locator("#waiting td.count", has_text="2").wait_for()  # without a reload
    page.locator("#failures").get_by_role("link", name="Reading failed").click()
    page.wait_for_url("**/?state=FAILED&within=7d")
    assert names(page) == ["Phantom, Failed"]


# how it looks, and for whom


def test_axe_finds_no_serious_fault(site: LiveSite, page: playwright.Page, frozen: None) -> None:
    fill(site)
    site.studies.deliver(at=FROZEN, refusal="0xC123 cannot understand")
    for path in ("/", "/?priority=HIGH&q=perhaps", "/operations", "/deliveries", "/nowhere"):
        page.goto(f"{site.address}{path}")
        assert violations(page) == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZE["width"], path
    open_list(page, site)
    page.keyboard.press("?")
    page.get_by_role("dialog").wait_for()
    assert violations(page) == []


def test_axe_finds_a_fault_that_is_there(site: LiveSite, page: playwright.Page) -> None:
    page.goto(f"{site.address}/")
    page.evaluate(
        "document.getElementById('search').closest('label').replaceWith(document.getElementById('search'))"
    )
    page.evaluate("document.getElementById('search').removeAttribute('placeholder')")
    assert any("label" in one for one in violations(page))


@pytest.mark.parametrize(("path", "name"), [("/", "worklist"), ("/operations", "operations")])
def test_a_page_looks_as_it_did(
    site: LiveSite, page: playwright.Page, frozen: None, path: str, name: str
) -> None:
    fill(site)
    page.goto(f"{site.address}{path}")
    page.evaluate("document.fonts.ready")
    assert_looks_like(page, name, masked=("#freshness", "#node", "#throughput .axis"))


def test_a_picture_tells_a_missing_column_from_another_font(
    site: LiveSite, page: playwright.Page, frozen: None
) -> None:
    fill(site)
    page.goto(f"{site.address}/")
    page.evaluate("document.body.style.fontFamily = 'DejaVu Sans Condensed, sans-serif'")
    assert_looks_like(page, "worklist", masked=("#freshness",))
    page.evaluate("document.body.style.fontFamily = ''")
    for column in (1, 3, 5, 9):
        page.evaluate(SHOW_BUT, column)
        with pytest.raises(AssertionError, match="looks unlike"):
            assert_looks_like(page, "worklist", masked=("#freshness",))


SHOW_BUT = """(number) => {
  for (const cell of document.querySelectorAll("#worklist :is(th, td)")) {
    cell.hidden = cell.cellIndex === number - 1;
  }
}"""
