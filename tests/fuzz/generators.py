"""Inputs of the targets: valid ones to begin with, and changed ones without end."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.fuzz import wire
from tests.fuzz.conversations import commitment, echo, report, report_answer, seed_conversations, store
from tests.fuzz.data_sets import part10, seed_data_sets
from tests.fuzz.mutations import mutate_bytes, mutated_conversation, mutated_data_set
from tests.fuzz.targets import BOUNDARY

_HEADERS = (
    'multipart/related; type="application/dicom"; boundary="boundary 7"',
    "application/dicom+json, application/dicom+xml;q=0.5, */*; q=0.1",
    'multipart/related; boundary*0*=utf-8\'\'b%20; boundary*1="x\\"y"',
    "application/dicom; transfer-syntax=*",
)
_SHARES = {
    "conversation": 40,
    "data_set": 25,
    "command_set": 10,
    "file": 10,
    "store_request": 7,
    "commitment": 3,
    "commitment_report": 3,
    "http_header": 2,
}
"""Of a hundred cases."""


def seeds(target: str) -> list[bytes]:
    """Valid inputs of a target."""
    return _SEEDS[target]()


def generated(random: Random) -> tuple[str, bytes]:
    """A target and a changed input for it."""
    (target,) = random.choices(list(_SHARES), list(_SHARES.values()))
    return target, generated_for(target, random)


def generated_for(target: str, random: Random) -> bytes:
    """A changed input for a target."""
    return _GENERATORS[target](random)


def _conversation_seeds() -> list[bytes]:
    streams = [b"".join(pdu for step in one for pdu in step.pdus()) for one in seed_conversations()]
    return [b"\0\0" + stream for stream in streams]


def _command_seeds() -> list[bytes]:
    data = seed_data_sets()[0]
    messages = (
        store(data, context_id=5, message_id=7),
        echo(1),
        commitment(data, message_id=2),
        report_answer(1),
    )
    return [wire.command_set(message.command) for message in messages]


def _data_set_seeds() -> list[bytes]:
    return [bytes([number]) + seed.encoded for number, seed in enumerate(seed_data_sets())]


def _file_seeds() -> list[bytes]:
    return [part10(seed, seed.encoded) for seed in seed_data_sets()]


def _commitment_seeds() -> list[bytes]:
    message = commitment(*seed_data_sets()[:3], message_id=1)
    assert isinstance(message.data, bytes)
    return [b"\0" + message.data]


def _commitment_report_seeds() -> list[bytes]:
    message = report(*seed_data_sets()[:3], message_id=1)
    assert isinstance(message.data, bytes)
    return [b"\0" + message.data]


def _body(files: list[bytes]) -> bytes:
    delimiter = f"--{BOUNDARY}".encode()
    parts = [delimiter + b"\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files]
    return b"".join(parts) + delimiter + b"--\r\n"


def _store_request_seeds() -> list[bytes]:
    files = _file_seeds()
    return [b"\0" + _body(files[:1]), b"\0" + b"preamble\r\n" + _body(files[1:4]), b"\0" + _body([])]


def _changed(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    mutate_bytes(changed, random)
    return bytes(changed)


def _conversation(random: Random) -> bytes:
    delivery = random.choices((0, 1, 2), (70, 20, 10))[0]
    return bytes([delivery, random.randrange(256)]) + mutated_conversation(random)


def _command_set(random: Random) -> bytes:
    return _changed(random.choice(_command_seeds()), random)


def _data_set(random: Random) -> bytes:
    seeds_ = seed_data_sets()
    number = random.randrange(len(seeds_))
    return bytes([number]) + mutated_data_set(seeds_[number], random)


def _file(random: Random) -> bytes:
    seed = random.choice(seed_data_sets())
    file = part10(seed, mutated_data_set(seed, random))
    return file if random.random() < 0.5 else file[:120] + _changed(file[120:], random)


def _store_request(random: Random) -> bytes:
    chosen = random.sample(seed_data_sets(), random.choice((1, 1, 2, 3)))
    body = _body(
        [part10(s, mutated_data_set(s, random) if random.random() < 0.5 else s.encoded) for s in chosen]
    )
    return bytes([random.randrange(256)]) + (body if random.random() < 0.3 else _changed(body, random))


def _commitment(random: Random) -> bytes:
    return _changed(random.choice(_commitment_seeds()), random)


def _commitment_report(random: Random) -> bytes:
    return _changed(random.choice(_commitment_report_seeds()), random)


def _http_header(random: Random) -> bytes:
    return _changed(random.choice(_HEADERS).encode(), random)


_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "conversation": _conversation_seeds,
    "command_set": _command_seeds,
    "data_set": _data_set_seeds,
    "file": _file_seeds,
    "store_request": _store_request_seeds,
    "commitment": _commitment_seeds,
    "commitment_report": _commitment_report_seeds,
    "http_header": lambda: [header.encode() for header in _HEADERS],
}
_GENERATORS: dict[str, Callable[[Random], bytes]] = {
    "conversation": _conversation,
    "command_set": _command_set,
    "data_set": _data_set,
    "file": _file,
    "store_request": _store_request,
    "commitment": _commitment,
    "commitment_report": _commitment_report,
    "http_header": _http_header,
}
