"""Changes at random, from the meaning down to the bits: steps, messages, data sets, PDUs, bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TypeAlias, cast

from tests.fuzz import wire
from tests.fuzz.conversations import ABORT, RELEASE, Message, Opening, Raw, Step, echo, seed_conversations
from tests.fuzz.data_sets import SeedDataSet, harmful_elements
from tests.fuzz.wire import Value

_NUMBERS = (0, 1, 2, 3, 4, 5, 7, 8, 127, 128, 255, 256, 1023, 4096, 16384, 32767, 32768, 65535, 65536)
_LONG_NUMBERS = (*_NUMBERS, 2**17, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_COMMAND_FIELDS = (0x0001, 0x0010, 0x0020, 0x0021, 0x0030, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150)
_COMMAND_FIELDS += (0x0FFF, *(field | 0x8000 for field in _COMMAND_FIELDS), 0x0000, 0xFFFF, 0x1234)
_COMMAND_ELEMENTS = (0x0000, 0x0002, 0x0003, 0x0100, 0x0110, 0x0120, 0x0700, 0x0800, 0x0900, 0x0902, 0x1000)
_COMMAND_ELEMENTS += (0x1001, 0x1002, 0x1008, 0x1031, 0x5110)
_BYTES_AT_MOST = 300_000
"""A conversation that grows beyond this is cut."""


def mutated_conversation(random: Random) -> bytes:
    """What one sender says: a valid conversation with some changes, as a stream of bytes."""
    steps = list(random.choice(seed_conversations()))
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        random.choice(_STEP_CHANGES)(steps, random)
    pdus = [pdu for step in steps for pdu in step.pdus()]
    if random.random() < 0.35:
        for _ in range(random.choice((1, 1, 2, 4))):
            random.choice(_PDU_CHANGES)(pdus, random)
    stream = bytearray(b"".join(pdus)[:_BYTES_AT_MOST])
    if random.random() < 0.2:
        mutate_bytes(stream, random)
    return bytes(stream)


def mutated_data_set(seed: SeedDataSet, random: Random) -> bytes:
    """An object with some changes to its elements and bytes."""
    elements = list(seed.elements)
    for _ in range(random.choice((1, 1, 2, 3))):
        random.choice(_ELEMENT_CHANGES)(elements, seed, random)
    encoded = bytearray(b"".join(elements))
    if random.random() < 0.3:
        mutate_bytes(encoded, random)
    return bytes(encoded)


def mutate_bytes(content: bytearray, random: Random) -> None:
    """Flip, overwrite, cut out, double or cut off some bytes."""
    for _ in range(random.choice((1, 1, 2, 5))):
        if not content:
            content += random.randbytes(8)
        at = random.randrange(len(content))
        end = at + random.choice((1, 2, 4, 16, 100))
        match random.randrange(8):
            case 0 | 1:
                content[at] ^= 1 << random.randrange(8)
            case 2:
                content[at] = random.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
            case 3:
                content[at:end] = random.randbytes(end - at)
            case 4:
                del content[at:end]
            case 5:
                content[at:at] = content[at:end]
            case 6:
                del content[at:]
            case _:
                form = random.choice((">H", "<H", ">I", "<I"))
                number = random.choice(_LONG_NUMBERS) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
                content[at : at + struct.calcsize(form)] = struct.pack(form, number)


def chunked(stream: bytes, random: Random) -> list[bytes]:
    """The stream in pieces of random lengths, many of them tiny."""
    chunks, at = [], 0
    longest = random.choice((2, 7, 64, 1000, 30_000))
    while at < len(stream) and len(chunks) < 200:
        length = random.randint(1, longest)
        chunks.append(stream[at : at + length])
        at += length
    return [*chunks, stream[at:]] if at < len(stream) else chunks


_StepChange: TypeAlias = Callable[[list[Step], Random], None]
_PduChange: TypeAlias = Callable[[list[bytes], Random], None]


def _change_step(steps: list[Step], random: Random) -> None:
    kind = random.randrange(5)
    at = random.randrange(len(steps)) if steps else 0
    other = random.choice(random.choice(seed_conversations()))
    if kind == 0 and steps:
        del steps[at]
    elif kind == 1 and steps:
        steps[at:at] = [steps[at]] * random.choice((1, 1, 2, 20))
    elif kind == 2 and steps:
        to = random.randrange(len(steps))
        steps[at], steps[to] = steps[to], steps[at]
    elif kind == 3 and steps:
        steps[at] = other
    else:
        steps[at:at] = [random.choice((other, other, ABORT, RELEASE, echo(at)))]


def _of_messages(change: Callable[[Message, Random], Message]) -> _StepChange:
    def apply(steps: list[Step], random: Random) -> None:
        places = [at for at, step in enumerate(steps) if isinstance(step, Message)]
        if places:
            at = random.choice(places)
            steps[at] = change(cast(Message, steps[at]), random)

    return apply


def _change_command(message: Message, random: Random) -> Message:
    elements = list(message.command)
    at = random.randrange(len(elements)) if elements else 0
    match random.randrange(7):
        case 0 if elements:
            del elements[at]
        case 1 if elements:
            elements.append(elements[at])
        case 2:
            elements.append(
                (random.choice(_COMMAND_ELEMENTS), random.randbytes(random.choice((0, 1, 2, 4, 64))))
            )
        case 3 if elements:
            value = bytearray(elements[at][1])
            mutate_bytes(value, random)
            elements[at] = (elements[at][0], bytes(value))
        case 4:
            return _with_element(message, 0x0100, wire.us(random.choice(_COMMAND_FIELDS)))
        case 5:
            return _with_element(message, 0x0800, wire.us(random.choice((0x0101, 0, 1, 0x0102))))
        case _:
            return _with_element(message, 0x0110, wire.us(random.choice(_NUMBERS)))
    return replace(message, command=tuple(elements))


def _with_element(message: Message, element: int, value: bytes) -> Message:
    return replace(
        message,
        command=tuple((number, value if number == element else old) for number, old in message.command),
    )


def _change_data(message: Message, random: Random) -> Message:
    if isinstance(message.data, SeedDataSet):
        return replace(message, data=mutated_data_set(message.data, random))
    if message.data is None:
        return replace(message, data=random.randbytes(random.choice((0, 1, 8, 100))))
    data = bytearray(message.data)
    mutate_bytes(data, random)
    return replace(message, data=bytes(data))


def _rename_object(message: Message, random: Random) -> Message:
    """Another valid UID in command and data set alike, so that it is another object."""
    data = message.data
    if not isinstance(data, SeedDataSet):
        return message
    uid = data.sop_instance_uid[:-1] + str(random.randrange(1, 10))
    renamed = replace(
        data,
        sop_instance_uid=uid,
        elements=tuple(e.replace(data.sop_instance_uid.encode(), uid.encode()) for e in data.elements),
    )
    return replace(_with_element(message, 0x1000, wire.ui(uid)), data=renamed)


def _change_fragments(message: Message, random: Random) -> Message:
    return replace(
        message,
        fragment_bytes=random.choice((5, 6, 16, 100, 1000, 20_000)),
        values_per_pdu=random.choice((1, 2, 3, 50)),
    )


def _change_context(message: Message, random: Random) -> Message:
    return replace(message, context_id=random.choice((0, 1, 2, 3, 5, 7, 9, 11, 13, 255)))


def _enlarge(message: Message, random: Random) -> Message:
    """Make the data set longer than what is looked at first, or than what is accepted."""
    if not isinstance(message.data, SeedDataSet):
        return message
    filler = struct.pack("<HH", 0x0009, 0x1010)
    filler += b"" if message.data.implicit_vr else b"OB\0\0"
    length = random.choice((60_000, 70_000, 140_000))
    encoded = message.data.encoded
    at = random.choice((0, len(encoded)))
    encoded = encoded[:at] + filler + struct.pack("<I", length) + bytes(length) + encoded[at:]
    return replace(message, data=encoded, fragment_bytes=random.choice((1000, 16_000, 60_000)))


def _change_opening(steps: list[Step], random: Random) -> None:
    places = [at for at, step in enumerate(steps) if isinstance(step, Opening)]
    if not places:
        return
    at = random.choice(places)
    opening = cast(Opening, steps[at])
    match random.randrange(5):
        case 0:
            left_out = random.choice((*opening.contexts, 0))
            contexts = {number: one for number, one in opening.contexts.items() if number != left_out}
            steps[at] = replace(opening, contexts=contexts)
        case 1:
            steps[at] = replace(opening, maximum_length=random.choice(_LONG_NUMBERS))
        case 2:
            title = random.choice(("", "NOBODY", "A" * 16, "Ä\\\0", " ICH_FUZZ "))
            steps[at] = replace(opening, **{random.choice(("called", "calling")): title})
        case 3:
            extra = wire.item(random.randrange(256), random.randbytes(random.choice((0, 1, 4, 40))))
            steps[at] = replace(opening, user_items=(*opening.user_items, extra))
        case _:
            pdu = bytearray(opening.pdus()[0])
            body = pdu[6:]
            mutate_bytes(body, random)
            steps[at] = Raw(encoded=(wire.pdu(wire.ASSOCIATE_RQ, bytes(body)),))


def _remove_pdu(pdus: list[bytes], random: Random) -> None:
    if pdus:
        del pdus[random.randrange(len(pdus))]


def _double_pdu(pdus: list[bytes], random: Random) -> None:
    if pdus:
        at = random.randrange(len(pdus))
        pdus[at:at] = [pdus[at]]


def _swap_pdus(pdus: list[bytes], random: Random) -> None:
    if pdus:
        one, other = random.randrange(len(pdus)), random.randrange(len(pdus))
        pdus[one], pdus[other] = pdus[other], pdus[one]


def _splice_pdus(pdus: list[bytes], random: Random) -> None:
    other = [pdu for step in random.choice(seed_conversations()) for pdu in step.pdus()]
    pdus[random.randrange(len(pdus) + 1) :] = other[random.randrange(len(other)) :]


def _insert_pdu(pdus: list[bytes], random: Random) -> None:
    kind = random.choice((*range(1, 9), 0, 0x47, 0x50, 0xFF))
    body = random.randbytes(random.choice((0, 2, 4, 4, 10, 68, 200)))
    pdus.insert(random.randrange(len(pdus) + 1), wire.pdu(kind, body))


def _change_pdu_header(pdus: list[bytes], random: Random) -> None:
    if pdus:
        at = random.randrange(len(pdus))
        pdu = bytearray(pdus[at])
        if random.random() < 0.3 or len(pdu) < 6:
            pdu[:1] = bytes([random.randrange(256)])
        else:
            real = len(pdu) - 6
            length = random.choice((*_LONG_NUMBERS, real - 1, real + 1, real + 4)) & 0xFFFFFFFF
            pdu[2:6] = struct.pack(">I", length)
        pdus[at] = bytes(pdu)


def _change_value(pdus: list[bytes], random: Random) -> None:
    """Change one presentation data value: its length, context, control header, or how it is cut."""
    places = [at for at, pdu in enumerate(pdus) if pdu[:1] == b"\x04"]
    if not places:
        return
    at = random.choice(places)
    try:
        values = list(wire.read_values(pdus[at][6:]))
    except ValueError:
        return
    if not values:
        return
    which = random.randrange(len(values))
    value = values[which]
    match random.randrange(5):
        case 0:
            values[which] = replace(value, control=random.choice((0, 1, 2, 3, 4, 0x80, 0xFF)))
        case 1:
            values[which] = replace(value, context_id=random.randrange(256))
        case 2:
            cut = random.randint(0, len(value.fragment))
            first = Value(
                context_id=value.context_id, control=value.control & 1, fragment=value.fragment[:cut]
            )
            values[which : which + 1] = [first, replace(value, fragment=value.fragment[cut:])]
        case 3:
            values[which:which] = [replace(value, fragment=b"", control=value.control & 1)]
        case _:
            length = random.choice(_LONG_NUMBERS)
            pdus[at] = pdus[at][:6] + struct.pack(">I", length) + pdus[at][10:]
            return
    pdus[at] = wire.data_tf(values)


def _mutate_pdu(pdus: list[bytes], random: Random) -> None:
    """Change the bytes of a PDU and give it the right length."""
    if pdus:
        at = random.randrange(len(pdus))
        body = bytearray(pdus[at][6:])
        mutate_bytes(body, random)
        pdus[at] = wire.pdu(pdus[at][0] if pdus[at] else 0, bytes(body))


def _change_elements(elements: list[bytes], seed: SeedDataSet, random: Random) -> None:
    at = random.randrange(len(elements)) if elements else 0
    kind = random.randrange(6)
    if kind == 0 and elements:
        del elements[at]
    elif kind == 1 and elements:
        elements.append(elements[at])
    elif kind == 2 and elements:
        to = random.randrange(len(elements))
        elements[at], elements[to] = elements[to], elements[at]
    elif kind == 3 and elements:
        content = bytearray(elements[at])
        mutate_bytes(content, random)
        elements[at] = bytes(content)
    elif kind == 4 and elements:
        elements[at] = _with_length(elements[at], seed.implicit_vr, random.choice(_LONG_NUMBERS))
    else:
        elements.insert(at, random.choice(harmful_elements(seed.implicit_vr)))


def _with_length(element: bytes, implicit_vr: bool, length: int) -> bytes:
    if implicit_vr:
        return element[:4] + struct.pack("<I", length) + element[8:]
    if element[6:8] == b"\0\0" and len(element) >= 12:
        return element[:8] + struct.pack("<I", length) + element[12:]
    return element[:6] + struct.pack("<H", length & 0xFFFF) + element[8:]


_STEP_CHANGES: tuple[_StepChange, ...] = (
    _change_step,
    _change_opening,
    _of_messages(_change_command),
    _of_messages(_change_data),
    _of_messages(_change_data),
    _of_messages(_rename_object),
    _of_messages(_change_fragments),
    _of_messages(_change_context),
    _of_messages(_enlarge),
)
_PDU_CHANGES: tuple[_PduChange, ...] = (
    _remove_pdu,
    _double_pdu,
    _swap_pdus,
    _splice_pdus,
    _insert_pdu,
    _change_pdu_header,
    _change_value,
    _mutate_pdu,
)
_ELEMENT_CHANGES: tuple[Callable[[list[bytes], SeedDataSet, Random], None], ...] = (_change_elements,)
