"""Who may send, and how much, as the settings say: the same by C-STORE and by STOW-RS."""

from __future__ import annotations

from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.settings import ReceiverSettings, Settings


def limits(receiver: ReceiverSettings) -> Limits:
    """The bounds that an installation has chosen."""
    return Limits(
        max_associations=receiver.max_associations,
        max_associations_per_peer=receiver.max_associations_per_peer,
        max_object_bytes=receiver.max_object_mib * 2**20,
        max_association_bytes=int(receiver.max_association_gib * 2**30),
        network_timeout_s=receiver.idle_seconds,
        min_bytes_per_second=receiver.min_bytes_per_second,
    )


def peers(settings: Settings) -> tuple[AllowedPeer, ...]:
    """Who may send; empty: anyone who can reach the address."""
    return tuple(
        AllowedPeer(
            ae_title=peer.ae_title,
            host=peer.host,
            port=peer.port,
            tls=peer.tls,
            certificate=peer.certificate,
        )
        for peer in settings.peers
    )
