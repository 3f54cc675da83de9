from __future__ import annotations

from pathlib import Path

import pytest

from ich_node import broker as broker_module
from ich_node.broker import prepare_broker, resolve_broker
from ich_node.errors import ConfigurationError
from ich_node.settings import BrokerSettings, Settings
from ich_node.tasks import create_app


def test_named_broker_is_not_started(tmp_path: Path) -> None:
    broker = resolve_broker(
        Settings(data_dir=tmp_path, broker=BrokerSettings(url="redis://queue.example:6379/0"))
    )
    assert (broker.url, broker.command, broker.socket) == ("redis://queue.example:6379/0", None, None)


def test_embedded_broker_listens_in_data_dir_only(tmp_path: Path) -> None:
    broker = resolve_broker(Settings(data_dir=tmp_path))
    assert broker.command is not None
    assert broker.command[broker.command.index("--port") + 1] == "0"
    assert broker.socket == tmp_path / "broker" / "valkey.sock"
    assert broker.url == f"redis+socket://{broker.socket}"


def test_socket_of_a_deep_data_dir_fits_the_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    broker = resolve_broker(Settings(data_dir=deep))
    assert broker.socket is not None
    assert len(str(broker.socket)) <= 100
    prepare_broker(broker, Settings(data_dir=deep))
    assert broker.socket.parent.stat().st_mode & 0o077 == 0
    broker.socket.parent.chmod(0o755)
    with pytest.raises(ConfigurationError, match="open to other users"):
        prepare_broker(broker, Settings(data_dir=deep))
    broker.socket.parent.rmdir()


def test_without_a_server_messages_go_through_files_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "_server_program", lambda: None)
    settings = Settings(data_dir=tmp_path)
    broker = resolve_broker(settings)
    assert broker.url == "filesystem://"
    assert broker.notice is not None
    prepare_broker(broker, settings)
    assert (tmp_path / "broker" / "messages").is_dir()


def test_any_data_dir_can_be_named_in_the_broker_url(tmp_path: Path) -> None:
    folder = tmp_path / "a b%41 #?[x]@"
    settings = Settings(data_dir=folder)
    broker = resolve_broker(settings)
    connection = create_app(settings).connection_for_write()
    assert connection.as_uri() == f"redis+socket://{broker.socket}"
