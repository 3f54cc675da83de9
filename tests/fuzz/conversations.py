"""What a sender says over one connection: steps that are valid together, and can be changed one by one."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.fuzz import wire
from tests.fuzz.data_sets import ROOT, SeedDataSet, element, seed_data_sets
from tests.fuzz.wire import Value

VERIFICATION = "1.2.840.10008.1.1"
COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"
ECHO_CONTEXT, COMMITMENT_CONTEXT = 1, 3
AE_TITLE = "ICH_FUZZ"


@dataclass(frozen=True, kw_only=True)
class Opening:
    """A-ASSOCIATE-RQ."""

    contexts: Mapping[int, tuple[str, tuple[str, ...]]]
    called: str = AE_TITLE
    calling: str = "SCANNER"
    user_items: tuple[bytes, ...] = ()
    maximum_length: int = 16384

    def pdus(self) -> list[bytes]:
        user = wire.user_information(*self.user_items, maximum_length=self.maximum_length)
        return [
            wire.associate_rq(self.contexts, called=self.called, calling=self.calling, user=user),
        ]


@dataclass(frozen=True, kw_only=True)
class Message:
    """One DIMSE message."""

    context_id: int
    command: tuple[tuple[int, bytes], ...]
    data: SeedDataSet | bytes | None = None
    fragment_bytes: int = 512
    """Longest fragment of its data set."""
    values_per_pdu: int = 1

    def values(self) -> list[Value]:
        command = wire.command_set(self.command)
        values = [
            Value(context_id=self.context_id, control=wire.COMMAND | wire.LAST, fragment=command),
        ]
        if self.data is None:
            return values
        data = self.data.encoded if isinstance(self.data, SeedDataSet) else self.data
        starts = range(0, max(1, len(data)), self.fragment_bytes)
        for at in starts:
            last = wire.LAST if at == starts[-1] else 0
            fragment = data[at : at + self.fragment_bytes]
            values.append(Value(context_id=self.context_id, control=last, fragment=fragment))
        return values

    def pdus(self) -> list[bytes]:
        values, count = self.values(), self.values_per_pdu
        return [wire.data_tf(values[at : at + count]) for at in range(0, len(values), count)]


@dataclass(frozen=True, kw_only=True)
class Raw:
    """PDUs as they are."""

    encoded: tuple[bytes, ...]

    def pdus(self) -> list[bytes]:
        return list(self.encoded)


Step: TypeAlias = Opening | Message | Raw
Conversation: TypeAlias = tuple[Step, ...]
RELEASE = Raw(encoded=(wire.RELEASE_REQUEST,))
ABORT = Raw(encoded=(wire.abort(),))


def store(data: SeedDataSet, *, context_id: int, message_id: int, fragment_bytes: int = 512) -> Message:
    """C-STORE-RQ (PS3.7 9.3.1.1)."""
    return Message(
        context_id=context_id,
        command=(
            (0x0002, wire.ui(data.sop_class_uid)),
            (0x0100, wire.us(wire.C_STORE_RQ)),
            (0x0110, wire.us(message_id)),
            (0x0700, wire.us(0)),
            (0x0800, wire.us(0x0001)),
            (0x1000, wire.ui(data.sop_instance_uid)),
        ),
        data=data,
        fragment_bytes=fragment_bytes,
    )


def echo(message_id: int) -> Message:
    """C-ECHO-RQ (PS3.7 9.3.5.1)."""
    return Message(
        context_id=ECHO_CONTEXT,
        command=(
            (0x0002, wire.ui(VERIFICATION)),
            (0x0100, wire.us(wire.C_ECHO_RQ)),
            (0x0110, wire.us(message_id)),
            (0x0800, wire.us(wire.NO_DATA_SET)),
        ),
    )


def commitment(*data_sets: SeedDataSet, message_id: int, transaction: int = 1) -> Message:
    """N-ACTION-RQ of storage commitment (PS3.4 J.3.2), in Explicit VR."""
    items = b""
    for data in data_sets:
        item = element(0x00081150, b"UI", wire.ui(data.sop_class_uid), implicit_vr=False)
        item += element(0x00081155, b"UI", wire.ui(data.sop_instance_uid), implicit_vr=False)
        items += b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item
    information = element(0x00081195, b"UI", wire.ui(f"{ROOT}.9.{transaction}"), implicit_vr=False)
    information += element(0x00081199, b"SQ", items, implicit_vr=False)
    return Message(
        context_id=COMMITMENT_CONTEXT,
        command=(
            (0x0003, wire.ui(COMMITMENT)),
            (0x0100, wire.us(wire.N_ACTION_RQ)),
            (0x0110, wire.us(message_id)),
            (0x0800, wire.us(0x0001)),
            (0x1001, wire.ui(COMMITMENT_INSTANCE)),
            (0x1008, wire.us(1)),
        ),
        data=information,
    )


def report(*data_sets: SeedDataSet, message_id: int, transaction: int = 1) -> Message:
    """N-EVENT-REPORT-RQ of storage commitment (PS3.4 J.3.3), in Explicit VR: the first object has failed."""
    sequences = [b"", b""]
    for number, data in enumerate(data_sets):
        item = element(0x00081150, b"UI", wire.ui(data.sop_class_uid), implicit_vr=False)
        item += element(0x00081155, b"UI", wire.ui(data.sop_instance_uid), implicit_vr=False)
        if number == 0:
            item += element(0x00081197, b"US", wire.us(0x0112), implicit_vr=False)
        sequences[number > 0] += b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item
    information = element(0x00081195, b"UI", wire.ui(f"{ROOT}.9.{transaction}"), implicit_vr=False)
    information += element(0x00081198, b"SQ", sequences[0], implicit_vr=False)
    information += element(0x00081199, b"SQ", sequences[1], implicit_vr=False)
    return Message(
        context_id=COMMITMENT_CONTEXT,
        command=(
            (0x0002, wire.ui(COMMITMENT)),
            (0x0100, wire.us(wire.N_EVENT_REPORT_RQ)),
            (0x0110, wire.us(message_id)),
            (0x0800, wire.us(0x0001)),
            (0x1000, wire.ui(COMMITMENT_INSTANCE)),
            (0x1002, wire.us(2)),
        ),
        data=information,
    )


def report_answer(message_id: int, *, status: int = 0) -> Message:
    """N-EVENT-REPORT-RSP (PS3.7 10.3.1.2)."""
    return Message(
        context_id=COMMITMENT_CONTEXT,
        command=(
            (0x0002, wire.ui(COMMITMENT)),
            (0x0100, wire.us(wire.N_EVENT_REPORT_RSP)),
            (0x0120, wire.us(message_id)),
            (0x0800, wire.us(wire.NO_DATA_SET)),
            (0x0900, wire.us(status)),
            (0x1000, wire.ui(COMMITMENT_INSTANCE)),
            (0x1002, wire.us(1)),
        ),
    )


@cache
def seed_contexts() -> dict[int, tuple[str, tuple[str, ...]]]:
    """Presentation contexts for every seed, verification and storage commitment."""
    contexts: dict[int, tuple[str, tuple[str, ...]]] = {
        ECHO_CONTEXT: (VERIFICATION, (ImplicitVRLittleEndian,)),
        COMMITMENT_CONTEXT: (COMMITMENT, (ExplicitVRLittleEndian,)),
    }
    for data in seed_data_sets():
        context = (data.sop_class_uid, (data.transfer_syntax_uid,))
        if context not in contexts.values():
            contexts[5 + 2 * (len(contexts) - 2)] = context
    return contexts


def context_of(data: SeedDataSet) -> int:
    """The presentation context of `seed_contexts` for an object."""
    wanted = (data.sop_class_uid, (data.transfer_syntax_uid,))
    return next(number for number, context in seed_contexts().items() if context == wanted)


@cache
def seed_conversations() -> tuple[Conversation, ...]:
    """Valid ones, of every kind that a sender has."""
    ct, implicit, sequences, private, odd, jpeg, j2k, rle, enhanced, *others = seed_data_sets()

    def one(data: SeedDataSet, message_id: int, fragment_bytes: int = 512) -> Message:
        return store(data, context_id=context_of(data), message_id=message_id, fragment_bytes=fragment_bytes)

    return (
        _with_opening(one(ct, 1), one(sequences, 2), echo(3), RELEASE),
        _with_opening(one(implicit, 1, 64), one(odd, 2, 10), RELEASE),
        _with_opening(one(jpeg, 7), one(j2k, 8), one(rle, 9), echo(10), RELEASE),
        _with_opening(*(one(data, n, 100 * n) for n, data in enumerate((enhanced, *others), 1)), RELEASE),
        _with_opening(one(private, 65535), commitment(private, message_id=2), report_answer(1), RELEASE),
        _with_opening(
            echo(1),
            one(ct, 2),
            one(ct, 3, 4096),
            echo(4),
            RELEASE,
        ),
        _with_opening(
            commitment(ct, odd, message_id=1),
            commitment(ct, message_id=2, transaction=2),
            report_answer(1, status=0x0110),
            report_answer(2),
            echo(3),
            ABORT,
        ),
        (_negotiating_opening(), store(ct, context_id=5, message_id=1), ABORT),
        (Opening(contexts=seed_contexts()), RELEASE),
        _with_opening(echo(1), ABORT),
        (
            Opening(
                contexts={COMMITMENT_CONTEXT: seed_contexts()[COMMITMENT_CONTEXT]},
                user_items=(wire.role_item(COMMITMENT, scu=False, scp=True),),
            ),
            report(ct, odd, message_id=1),
            report(ct, odd, message_id=2),
            report(ct, message_id=3, transaction=2),
            RELEASE,
        ),
    )


def _with_opening(*steps: Message | Raw) -> Conversation:
    """Ask for the presentation contexts that are used, and for verification."""
    used = {ECHO_CONTEXT} | {step.context_id for step in steps if isinstance(step, Message)}
    return Opening(contexts={number: seed_contexts()[number] for number in sorted(used)}), *steps


def _negotiating_opening() -> Opening:
    """With every kind of user information item there is (PS3.7 annex D.3.3)."""
    ct = CTImageStorage.encode()
    class_length = struct.pack(">H", len(ct))
    return Opening(
        contexts={
            5: (CTImageStorage, (ExplicitVRLittleEndian, ImplicitVRLittleEndian)),
            7: (EnhancedCTImageStorage, ("1.2.840.10008.1.2.2",)),
            9: ("1.2.3.4", (ImplicitVRLittleEndian,)),
        },
        maximum_length=0,
        user_items=(
            wire.item(0x53, struct.pack(">HH", 5, 5)),
            wire.item(0x54, class_length + ct + b"\0\1"),
            wire.item(0x56, class_length + ct + b"\2\0\0\0\1\0"),
            wire.item(0x57, class_length + ct + struct.pack(">H", 17) + b"1.2.840.10008.4.2\0\0"),
            wire.item(0x58, b"\1\1" + struct.pack(">H", 5) + b"Zyxwv" + struct.pack(">H", 0)),
        ),
    )
