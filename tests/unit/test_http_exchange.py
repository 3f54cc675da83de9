"""How an HTTP answer is read; the conversations are in the integration tests of who has them."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from urllib3 import HTTPHeaderDict

from ich_node.http_exchange import HttpAnswer


def answer(**headers: str) -> HttpAnswer:
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return HttpAnswer(
        status=503, reason="Service Unavailable", headers=HTTPHeaderDict(shown), content=iter(())
    )


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", None),
        ("soon", None),
        ("-5", None),
        ("٣", None),
        ("9" * 5000, None),
        ("Tue, 14 Nov 99999 22:14:20 GMT", None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("Tue, 14 Nov 2022 22:14:20 GMT", 0.0),
        ("Tue, 14 Nov 2022 22:14:20 -0000", 0.0),
    ],
)
def test_a_wish_to_wait_is_read(value: str, seconds: float | None) -> None:
    assert answer(retry_after=value).retry_after_s == seconds


def test_a_wish_to_wait_until_a_time_is_read() -> None:
    until = formatdate(time.time() + 600, usegmt=True)
    assert answer(Retry_After=until).retry_after_s == pytest.approx(600, abs=30)


def test_who_does_not_ask_is_not_left_alone() -> None:
    assert answer().retry_after_s is None
    assert answer().status_line == "HTTP 503 Service Unavailable"
