"""STOW-RS as the settings say: into the same spool and with the same limits as by C-STORE."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ich_node.database.engine import Database
from ich_node.intake import Intake
from ich_node.receive.arrival import Gate
from ich_node.receive.free_space import FreeSpace
from ich_node.receive.ledger import PeerLedger
from ich_node.receive.received import ReceivedInstance
from ich_node.receive.spool import Spool
from ich_node.receive.stow import StoreDesk
from ich_node.receive.waiting import HandedOn
from ich_node.receiver_terms import limits, peers
from ich_node.settings import Settings


@contextmanager
def open_store_desk(settings: Settings, database: Database, free_space: FreeSpace) -> Iterator[StoreDesk]:
    """Take objects by STOW-RS from now on."""
    spool = Spool(settings.spool_dir)
    gate = Gate(disk_is_low=free_space.is_low)
    ledger = PeerLedger(settings.receiver.max_peer_gib_per_day * 2**30)
    with Intake(settings, database, spool) as intake:

        def hand_on(what: HandedOn) -> None:
            if isinstance(what, ReceivedInstance):
                ledger.add(what.source_ae_title, what.spooled.size_bytes)
            else:  # the end of a request
                gate.spent_peers = ledger.spent()
            intake.put(what)
            gate.full_studies = intake.full_studies()

        desk = StoreDesk(
            spool=spool,
            hand_on=hand_on,
            gate=gate,
            limits=limits(settings.receiver),
            peers=peers(settings),
        )
        try:
            yield desk
        finally:
            desk.close()
