"""A MariaDB server of the tests' own, on a free loopback port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.postgresql_server import unprivileged_user

USER, PASSWORD = "ich", "s3cret-of-maria"


@contextmanager
def mariadb_server() -> Iterator[int]:
    """The port of a server that ends with the block; the test is skipped where none is installed."""
    program, installer = (
        shutil.which("mariadbd", path="/usr/sbin:/usr/bin"),
        shutil.which("mariadb-install-db"),
    )
    if program is None or installer is None:
        pytest.skip("MariaDB is not installed (Debian's package mariadb-server)")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed (Debian's package util-linux)")
    pytest.importorskip("pymysql", reason="pymysql is not installed")
    folder = Path(tempfile.mkdtemp(prefix="ich-maria-"))
    try:
        with _running(program, installer, folder) as port:
            yield port
    finally:
        shutil.rmtree(folder)


@contextmanager
def _running(program: str, installer: str, folder: Path) -> Iterator[int]:
    as_user, user = ["setpriv", "--pdeathsig", "KILL"], unprivileged_user()
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    data = folder / "data"
    install = [installer, "--no-defaults", f"--datadir={data}", "--auth-root-authentication-method=normal"]
    made = subprocess.run(
        [*as_user, *install, "--skip-test-db"], capture_output=True, text=True, cwd="/", timeout=120
    )
    assert made.returncode == 0, made.stderr + made.stdout
    first = folder / "first.sql"
    first.write_text(
        "CREATE DATABASE ris CHARACTER SET utf8mb4;\n"
        f"CREATE USER {USER}@'127.0.0.1' IDENTIFIED BY '{PASSWORD}';\nGRANT ALL ON *.* TO {USER}@'127.0.0.1';\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    options = [
        f"--datadir={data}",
        f"--socket={folder}/s",
        f"--pid-file={folder}/pid",
        f"--init-file={first}",
    ]
    options += [
        "--bind-address=127.0.0.1",
        f"--port={port}",
        "--skip-name-resolve",
        "--innodb-buffer-pool-size=16M",
    ]
    options += ["--innodb-flush-log-at-trx-commit=0", "--skip-log-bin"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*as_user, program, "--no-defaults", *options], stderr=log, stdout=log, cwd="/"
        )
    try:
        _wait_until_it_answers(process, port, folder / "log")
        yield port
    finally:
        process.kill()
        process.wait(60)


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import pymysql

    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            pymysql.connect(host="127.0.0.1", port=port, user=USER, password=PASSWORD, database="ris").close()
            return
        except pymysql.err.OperationalError:
            time.sleep(0.1)  # it tells nobody when it is ready
    raise AssertionError("MariaDB did not start: " + log.read_text())
