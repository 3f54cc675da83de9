"""Streams of changes, without sockets and without a database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Message

from ich_node.errors import TransientError
from ich_node.web import events
from ich_node.web.events import Changes, ChangeStream


class Versions:
    """Gives the version that a test sets; counts how often it is asked."""

    def __init__(self) -> None:
        self.current = "1"
        self.fault: Exception | None = None
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return self.current


class Listener:
    """A client of one stream."""

    def __init__(self, changes: Changes) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()
        self.task = asyncio.create_task(ChangeStream(changes).stream_response(self.messages.put))

    async def event(self) -> str:
        """The next event, as its kind and its data."""
        while True:
            message = await asyncio.wait_for(self.messages.get(), 20)
            fields = dict(
                line.split(": ", 1) for line in message.get("body", b"").decode().splitlines() if ": " in line
            )
            if "event" in fields:
                return f"{fields['event']} {fields['data']}"

    async def ended(self) -> bool:
        """Whether the stream comes to its end by itself."""
        await asyncio.wait_for(self.task, 20)
        last = None
        while not self.messages.empty():
            last = self.messages.get_nowait()
        return last == {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_EVERY_S", 0.01)


def run(test: Callable[[Changes, Versions], Awaitable[None]], most_streams: int = 200) -> Versions:
    versions = Versions()

    async def all_of_it() -> None:
        changes = Changes(versions, most_streams=most_streams)
        await test(changes, versions)
        changes.end()

    asyncio.run(all_of_it())
    return versions


def test_everybody_hears_of_each_change_and_the_version_is_asked_once_for_all() -> None:
    async def test(changes: Changes, versions: Versions) -> None:
        listeners = [Listener(changes) for _ in range(50)]
        assert {await one.event() for one in listeners} == {"change 1"}
        asked = versions.asked
        versions.current = "2"
        assert {await one.event() for one in listeners} == {"change 2"}
        assert versions.asked - asked < 50
        late = Listener(changes)
        assert await late.event() == "change 2"

    run(test)


def test_nobody_is_asked_while_nobody_listens() -> None:
    async def test(changes: Changes, versions: Versions) -> None:
        listener = Listener(changes)
        await listener.event()
        listener.task.cancel()
        while changes.is_watching:
            await asyncio.sleep(0)
        asked = versions.asked
        await asyncio.sleep(0.05)
        assert versions.asked == asked
        versions.current = "2"
        assert await Listener(changes).event() == "change 2"

    run(test)


def test_a_heartbeat_says_the_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)

    async def test(changes: Changes, versions: Versions) -> None:
        listener = Listener(changes)
        heard = {await listener.event() for _ in range(5)}
        assert heard >= {"change 1", "alive 1"}

    run(test)


@pytest.mark.parametrize("fault", [TransientError("locked"), RuntimeError("a fault of the program")])
def test_a_database_that_is_away_is_a_change_and_its_return_is_one(fault: Exception) -> None:
    async def test(changes: Changes, versions: Versions) -> None:
        listener = Listener(changes)
        assert await listener.event() == "change 1"
        versions.fault = fault
        assert await listener.event() == "change unavailable"
        versions.fault = None
        assert await listener.event() == "change 1"

    run(test)


def test_streams_end_when_the_server_stops_and_when_they_have_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(changes: Changes, versions: Versions) -> None:
        listener = Listener(changes)
        await listener.event()
        changes.end()
        assert await listener.ended()
        assert await Listener(changes).ended()  # that comes while the server stops

    run(test)
    monkeypatch.setattr(events, "STREAM_S", 0.05)

    async def short(changes: Changes, versions: Versions) -> None:
        monkeypatch.setattr(events, "HEARTBEAT_S", 0.01)
        assert await Listener(changes).ended()

    run(short)


def test_who_comes_too_many_is_known_and_a_place_is_free_again() -> None:
    async def test(changes: Changes, versions: Versions) -> None:
        listeners = [Listener(changes) for _ in range(3)]
        for one in listeners:
            await one.event()
        assert changes.is_full
        listeners[0].task.cancel()
        await asyncio.wait([listeners[0].task])
        assert not changes.is_full

    run(test, most_streams=3)
