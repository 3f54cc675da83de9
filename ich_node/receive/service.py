"""What an association needs of whoever takes its objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ich_node.receive.arrival import Arrival
from ich_node.receive.command_set import CommandSet

if TYPE_CHECKING:
    from ich_node.receive.upper_layer import StorageAssociation


class StoreService(Protocol):
    """What takes the objects of an association."""

    def begin_store(self, association: StorageAssociation, command: CommandSet, context_id: int) -> Arrival:
        """Take up an object."""
        ...

    def end_store(self, association: StorageAssociation, arrival: Arrival) -> tuple[int, str]:
        """Make it durable: Status (0000,0900) and Error Comment (0000,0902) of the answer."""
        ...

    def after_store(self, association: StorageAssociation) -> None:
        """Hand it on, after it was answered."""
        ...

    def after_request(self, association: StorageAssociation) -> None:
        """Do what is due when another request has been answered."""
        ...

    def answered(self, association: StorageAssociation, message: Any) -> None:
        """Take the answer to a request of this node."""
        ...

    def end(self, association: StorageAssociation) -> None:
        """Take note that nothing more comes over this association."""
        ...
