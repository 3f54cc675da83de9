"""A receiver in one process: it listens and serves."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence

from ich_node.receive.arrival import Gate
from ich_node.receive.commitment import CommitmentDesk
from ich_node.receive.commitment_results import CommitmentResults
from ich_node.receive.limits import AllowedPeer, Limits
from ich_node.receive.listener import Endpoint, Listener
from ich_node.receive.received import AssociationSummary, ReceivedInstance
from ich_node.receive.scp import StorageScp
from ich_node.receive.spool import Spool
from ich_node.receive.tls import ServerIdentity
from ich_node.receive.worklist_find import LookUp

_LOG = logging.getLogger(__name__)


class Receiver:
    """Listens for associations and puts every object that it accepts into the spool.

    Parameters
    ----------
    host, port
        Where to listen; port 0 takes a free one.
    endpoints
        Where to listen instead, where one address is not enough.

    Notes
    -----
    The others are those of `StorageScp`.
    """

    def __init__(
        self,
        *,
        ae_title: str,
        spool: Spool,
        on_instance: Callable[[ReceivedInstance], None],
        on_association_end: Callable[[AssociationSummary], None],
        host: str = "127.0.0.1",
        port: int = 11112,
        endpoints: Sequence[Endpoint] = (),
        peers: Sequence[AllowedPeer] = (),
        limits: Limits | None = None,
        gate: Gate | None = None,
        tls: ServerIdentity | None = None,
        commitment: CommitmentDesk | None = None,
        results: CommitmentResults | None = None,
        worklist: LookUp | None = None,
    ) -> None:
        self._ae_title = ae_title
        self._spool = spool
        self._limits = limits or Limits()
        self._endpoints = tuple(endpoints) or (Endpoint(host=host, port=port),)
        self._scp = StorageScp(
            ae_title=ae_title,
            spool=spool,
            on_instance=on_instance,
            on_association_end=on_association_end,
            peers=peers,
            limits=self._limits,
            gate=gate,
            tls=tls,
            commitment=commitment,
            results=results,
            worklist=worklist,
        )
        self._listener: Listener | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """The TCP ports that are listened on, in the order of the endpoints."""
        return self._listener.ports if self._listener else tuple(e.port for e in self._endpoints)

    @property
    def port(self) -> int:
        """The first of them."""
        return self.ports[0]

    def start(self) -> None:
        """Listen, and remove what an earlier receiver left unfinished in the spool.

        Raises
        ------
        ConfigurationError
            An address cannot be listened on.
        """
        listener = Listener(self._endpoints, self._take, self._limits)
        self._spool.remove_leftovers()
        listener.start()
        self._listener = listener
        for endpoint, port in zip(self._endpoints, listener.ports, strict=True):
            how = " over TLS" if endpoint.tls else ""
            _LOG.info("receiving as %s on %s port %d%s", self._ae_title, endpoint.host, port, how)

    def stop(self) -> None:
        """Stop listening, let a store that is under way finish, abort the associations, report their end."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        self._scp.stop()

    def _take(self, connection: socket.socket, over_tls: bool) -> None:
        self._scp.serve(connection, over_tls=over_tls)
