"""Faults of accessibility that axe-core finds on a page in a real browser.

axe-core (MPL-2.0) is for tests only. It comes from the npm registry once and stays in a cache folder outside the
repository.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.npm_package import PackageUnavailableError, packaged_file

if TYPE_CHECKING:
    from playwright.sync_api import Page

VERSION = "4.14.1"
TARBALL_SHA256 = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
_GRAVE = ("serious", "critical")
_RUN = """async (grave) => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  return found.violations
    .filter((one) => grave.includes(one.impact))
    .map((one) => {
      const places = one.nodes.map((node) => node.html.slice(0, 120)).join(" | ");
      return `${one.impact} ${one.id}: ${one.help}: ${places}`;
    });
}"""


def violations(page: Page) -> list[str]:
    """Serious and critical faults of a page as it stands, a line for each; without axe-core the test is skipped."""
    try:
        program = packaged_file("axe-core", VERSION, TARBALL_SHA256, "axe.min.js")
    except PackageUnavailableError as error:
        pytest.skip(str(error))
    page.evaluate(
        program.read_text()
    )  # not as a script element: the page's Content-Security-Policy forbids that
    found = page.evaluate(_RUN, list(_GRAVE))
    return [str(one) for one in found]
