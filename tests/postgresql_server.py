"""A PostgreSQL server of the tests' own on a unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import text

from ich_node.database.engine import Database


@dataclass(frozen=True, kw_only=True)
class Server:
    """A PostgreSQL server of our own on a unix socket."""

    folder: Path

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://ich_node@/{name}?host={self.folder}"

    def run(self, sql: str) -> None:
        """Run one statement outside a transaction."""
        engine = Database(self.url("postgres")).engine
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(sql))
        engine.dispose()


@contextmanager
def postgresql_server(settings: str = "fsync=off") -> Iterator[Server]:
    """A server that ends with the block; the test is skipped where none is installed.

    Parameters
    ----------
    settings
        Of the server's configuration, with blanks between.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed (Debian's package util-linux)")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    folder = Path(tempfile.mkdtemp(prefix="ich-pg-"))  # short: a unix socket's address holds 107 bytes
    try:
        with _running(programs[-1].parent, folder, unprivileged_user(), settings):
            yield Server(folder=folder)
    finally:
        shutil.rmtree(folder)


@contextmanager
def _running(binaries: Path, folder: Path, user: pwd.struct_passwd | None, chosen: str) -> Iterator[None]:
    data = str(folder / "data")
    as_user = ["setpriv", "--pdeathsig", "QUIT"]  # the server ends with the tests, however they end
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    init = [str(binaries / "initdb"), "-D", data, "-U", "ich_node", "-A", "trust", "-E", "UTF8", "-N"]
    made = subprocess.run(as_user + init, capture_output=True, text=True, cwd="/", timeout=120)
    assert made.returncode == 0, made.stderr
    settings = f"listen_addresses= unix_socket_directories={folder} max_connections=200 {chosen}"
    options = [part for setting in settings.split() for part in ("-c", setting)]
    process = subprocess.Popen(
        [*as_user, str(binaries / "postgres"), "-D", data, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "ready to accept connections" in line:
            break
    else:
        raise AssertionError("PostgreSQL did not start: " + "".join(said))
    reader = threading.Thread(target=deque, args=(process.stderr, 0))
    reader.start()
    try:
        yield
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(60)
        reader.join(60)
        process.stderr.close()


def unprivileged_user() -> pwd.struct_passwd | None:
    """Whom servers run as that refuse to be root; ``None`` where this process is not root itself."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return pytest.skip("the server refuses to run as root, and there is no other user")
