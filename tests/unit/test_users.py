"""Users, sessions, tokens and failed logins in the database, and the commands that manage them."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from ich_node.cli import main
from ich_node.database.access import AccessAction
from ich_node.database.engine import Database
from ich_node.database.login_failures import (
    FREE_FOR_A_SOURCE,
    FREE_FOR_A_USER,
    LONGEST_FOR_A_USER,
    add_failure,
    forget_failures,
    waiting_time,
)
from ich_node.database.sessions import (
    SessionOrigin,
    end_session,
    end_sessions_of,
    open_session,
    open_sessions,
    session_of,
    touch_session,
)
from ich_node.database.tokens import TokenError, create_token, revoke_token, token_of
from ich_node.database.users import (
    UserError,
    add_user,
    disable_user,
    enable_user,
    password_of,
    remove_user,
    set_password,
    set_role,
    user_name,
)
from ich_node.database.web_tables import AccessRow, LoginFailureRow, SessionRow, TokenRow, UserRow
from ich_node.web import passwords

NOW = datetime(2026, 11, 21, 8, 0, tzinfo=UTC)
IDLE = timedelta(minutes=30)
GOOD = "correct horse battery"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(GOOD)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without rows; making its schema takes longer than a test."""
    path = tmp_path_factory.mktemp("empty") / "node.sqlite"
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.dispose()
    return path


@pytest.fixture
def database(empty: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copyfile(empty, tmp_path / "node.sqlite")
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    with database.writing() as session:
        add_user(session, name="anna", role="radiologist", password_hash="$hash", now=NOW)
    yield database
    database.dispose()


def log_in(database: Database, name: str = "anna", origin: SessionOrigin = SessionOrigin.LOCAL) -> str:
    with database.writing() as session:
        return open_session(
            session,
            user_name=name,
            role="radiologist",
            origin=origin,
            now=NOW,
            lifetime=timedelta(hours=12),
        )


def is_in(database: Database, token: str, at: datetime = NOW) -> bool:
    with database.reading() as session:
        return session_of(session, token, now=at, idle=IDLE) is not None


# sessions


def test_a_cookie_is_kept_nowhere(database: Database) -> None:
    token = log_in(database)
    assert len(token) >= 43  # 256 bits
    assert token != log_in(database)
    with database.reading() as session:
        for row in session.scalars(select(SessionRow)):
            assert token not in str(vars(row))
            assert row.csrf_token != row.token_sha256
    assert is_in(database, token)
    for wrong in ("", "x", token[:-1], token + "A", "\udce4"):
        assert not is_in(database, wrong)


def test_a_session_ends_when_it_is_not_used_and_after_its_time(database: Database) -> None:
    token = log_in(database)
    assert is_in(database, token, NOW + timedelta(minutes=29))
    assert not is_in(database, token, NOW + timedelta(minutes=30))
    for hours in range(13):
        at = NOW + timedelta(hours=hours)
        with database.writing() as session:
            touch_session(session, token, now=at)
        assert is_in(database, token, at + timedelta(minutes=1)) == (hours < 12)


def test_a_session_ends_by_logging_out_and_others_go_on(database: Database) -> None:
    here, there, other = log_in(database), log_in(database), log_in(database, "x", SessionOrigin.OIDC)
    with database.writing() as session:
        end_session(session, here)
    assert [is_in(database, token) for token in (here, there, other)] == [False, True, True]
    with database.writing() as session:
        assert open_sessions(session, now=NOW, idle=IDLE) == {"anna": 1, "x": 1}
        assert end_sessions_of(session, "x") == 1
    assert [is_in(database, token) for token in (there, other)] == [True, False]


@pytest.mark.parametrize("change", ["role", "disable", "password", "remove"])
def test_a_change_of_a_user_ends_its_sessions(database: Database, change: str) -> None:
    tokens = [log_in(database), log_in(database)]
    with database.writing() as session:
        ended = {
            "role": lambda: set_role(session, name="anna", role="viewer"),
            "disable": lambda: disable_user(session, name="anna", now=NOW),
            "password": lambda: set_password(session, name="anna", password_hash="$other", now=NOW),
            "remove": lambda: remove_user(session, name="anna"),
        }[change]()
    assert ended == 2
    assert not any(is_in(database, token) for token in tokens)


def test_a_session_of_a_user_that_is_not_who_it_was_is_none(database: Database) -> None:
    """Also where something else than our own functions has changed the user."""
    token = log_in(database)
    with database.writing() as session:
        row = session.get(UserRow, "anna")
        assert row is not None
        row.role = "admin"
    assert not is_in(database, token)
    assert is_in(database, log_in(database, "anna", SessionOrigin.OIDC))  # whom the hospital vouches for


# users and tokens


def test_users_are_managed(database: Database) -> None:
    with database.writing() as session:
        with pytest.raises(UserError, match="set-password anna"):
            add_user(session, name="anna", role="viewer", password_hash="", now=NOW)
        disable_user(session, name="anna", now=NOW)
        disable_user(session, name="anna", now=NOW + IDLE)
    with database.reading() as session:
        found = password_of(session, "anna")
    assert found is not None
    assert found[0].disabled_at == NOW
    assert "$hash" not in repr(found[0])
    with database.writing() as session:
        enable_user(session, name="anna")
        with pytest.raises(UserError, match="no user bob"):
            set_role(session, name="bob", role="admin")
        remove_user(session, name="anna")
        assert password_of(session, "anna") is None


@pytest.mark.parametrize("name", ["", " ", "-x", "a b", "ä", "a" * 65, "x'--", "a\nb", "<b>"])
def test_odd_names_are_none(name: str) -> None:
    with pytest.raises(UserError):
        user_name(name)


def test_a_name_is_the_same_in_any_case() -> None:
    assert user_name(" Anna.M@Hospital ") == "anna.m@hospital"


def test_a_token_lets_in_until_it_is_revoked_or_expires(database: Database) -> None:
    with database.writing() as session:
        token = create_token(
            session, name="orthanc", role="machine", created_by="me", now=NOW, expires_at=NOW + IDLE
        )
        with pytest.raises(TokenError, match="revoke orthanc"):
            create_token(session, name="orthanc", role="admin", created_by="me", now=NOW, expires_at=None)
    with database.reading() as session:
        assert token not in str([vars(row) for row in session.scalars(select(TokenRow))])
        found = token_of(session, token, now=NOW)
        assert found is not None
        assert (found.name, found.role) == ("orthanc", "machine")
        assert token_of(session, token, now=NOW + IDLE) is None
        assert token_of(session, token.swapcase(), now=NOW) is None
    with database.writing() as session:
        revoke_token(session, name="orthanc", now=NOW)
        assert token_of(session, token, now=NOW) is None
        with pytest.raises(TokenError, match="no token x"):
            revoke_token(session, name="x", now=NOW)
        other = create_token(
            session, name="orthanc", role="viewer", created_by="me", now=NOW, expires_at=None
        )
        assert token_of(session, token, now=NOW) is None
        assert token_of(session, other, now=NOW) is not None


# failed logins


def fail(database: Database, count: int, *, user: str, source: str, at: datetime = NOW) -> None:
    with database.writing() as session:
        for _ in range(count):
            add_failure(session, user_name=user, source=source, now=at)


def wait(database: Database, *, user: str, source: str, at: datetime = NOW) -> float:
    with database.reading() as session:
        return waiting_time(session, user_name=user, source=source, now=at).total_seconds()


def test_each_failure_doubles_the_wait_of_a_user_wherever_he_comes_from(database: Database) -> None:
    fail(database, FREE_FOR_A_USER - 1, user="anna", source="a")
    assert wait(database, user="anna", source="a") == 0
    waits = []
    for _ in range(9):
        fail(database, 1, user="anna", source="a")
        waits.append(wait(database, user="anna", source="b"))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert wait(database, user="anna", source="b", at=NOW + timedelta(seconds=59)) == 1
    assert wait(database, user="anna", source="b", at=NOW + LONGEST_FOR_A_USER) == 0
    assert wait(database, user="otto", source="b") == 0
    with database.writing() as session:
        forget_failures(session, user_name="anna")
    assert wait(database, user="anna", source="a") == 0


def test_a_clock_that_was_set_back_keeps_nobody_out(database: Database) -> None:
    fail(database, FREE_FOR_A_USER, user="anna", source="a", at=NOW + timedelta(days=1))
    assert wait(database, user="anna", source="a") == 1
    fail(database, 100, user="anna", source="a", at=NOW + timedelta(days=1))
    assert wait(database, user="anna", source="a") == 300


def test_trying_many_names_from_one_place_takes_longer_and_longer(database: Database) -> None:
    for number in range(FREE_FOR_A_SOURCE - 1):
        fail(database, 1, user=f"user{number}", source="a")
    assert wait(database, user="anna", source="a") == 0
    fail(database, 3, user="x", source="a")
    assert wait(database, user="anna", source="a") == 4
    assert wait(database, user="anna", source="b") == 0
    fail(database, 100, user="y", source="a")
    assert wait(database, user="anna", source="a") == 300


def test_old_failures_go_and_no_name_is_kept(database: Database) -> None:
    fail(database, 6, user="a password in the wrong field", source="a")
    with database.reading() as session:
        assert "password" not in str([vars(row) for row in session.scalars(select(LoginFailureRow))])
    fail(database, 1, user="anna", source="b", at=NOW + timedelta(hours=1))
    with database.reading() as session:
        assert len(list(session.scalars(select(LoginFailureRow)))) == 1


# passwords


def test_a_password_is_hashed_by_argon2id() -> None:
    first, second = passwords.hash_password(GOOD), passwords.hash_password(GOOD)
    assert first.startswith("$argon2id$")
    assert first != second
    assert passwords.is_password(GOOD, first)
    assert not passwords.is_password(GOOD + " ", first)
    assert not passwords.is_password(GOOD, None)
    assert not passwords.is_password("nobody has this password", None)
    assert not passwords.is_password(GOOD, "$broken")
    assert not passwords.is_outdated(first)
    assert passwords.is_outdated(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(GOOD))


def test_a_password_is_the_same_from_any_keyboard() -> None:
    assert passwords.is_password("Mu\u0308nchner Freiheit", passwords.hash_password("M\u00fcnchner Freiheit"))


@pytest.mark.parametrize("password", ["", "short", "x" * 257, "aaaaaaaaaaaaaaa", "anna's long password"])
def test_weak_passwords_are_refused_with_what_to_do(password: str) -> None:
    with pytest.raises(passwords.WeakPassword, match="several words"):
        passwords.check_strength(password, "anna")
    passwords.check_strength(GOOD, "anna")


def test_a_short_name_may_stand_in_a_word() -> None:
    passwords.check_strength(GOOD, "co")


@given(st.text(max_size=300))
def test_any_text_may_be_tried(password: str) -> None:
    assert not passwords.is_password(password, CHEAP)


# commands


@pytest.fixture
def node(empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Database:
    monkeypatch.setenv("ICH_NODE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ICH_NODE_DATABASE__URL", f"sqlite:///{tmp_path / 'cli.sqlite'}")
    monkeypatch.setenv("ICH_NODE_WEB__LOGIN__LOCAL_USERS", "true")
    shutil.copyfile(empty, tmp_path / "cli.sqlite")
    return Database(f"sqlite:///{tmp_path / 'cli.sqlite'}")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_users_by_command(
    node: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, f"{GOOD}\n")
    assert run("users", "add", "Anna", "--role", "viewer", "--password-stdin") == 0
    assert capsys.readouterr().out == "anna may log in as viewer.\n"
    type_in(monkeypatch, f"{GOOD}\n")
    assert run("users", "add", "anna", "--role", "admin", "--password-stdin") == 1
    assert "there is a user anna already" in capsys.readouterr().err
    assert run("users", "list", "--json") == 0
    (row,) = said(capsys)
    assert (row["name"], row["role"], row["sessions"]) == ("anna", "viewer", 0)
    assert "hash" not in str(row)
    token = log_in_by_role(node, "viewer")
    assert run("users", "set-role", "anna", "radiologist", "--json") == 0
    assert said(capsys) == {"name": "anna", "role": "radiologist", "sessions_ended": 1}
    assert not is_in(node, token, datetime.now(UTC))
    type_in(monkeypatch, "another good password\n")
    for command in (["set-password", "anna", "--password-stdin"], ["disable", "anna"], ["enable", "anna"]):
        assert run("users", *command) == 0
    with node.reading() as session:
        found = password_of(session, "anna")
        assert found is not None
        assert passwords.is_password("another good password", found[1])
    assert run("users", "list") == 0
    assert "anna" in capsys.readouterr().out
    assert run("users", "remove", "anna") == 0
    assert run("users", "log-out", "x@hospital") == 0
    assert run("users", "disable", "anna") == 1
    assert "there is no user anna" in capsys.readouterr().err
    assert run("users", "list") == 0
    assert "Nobody yet" in capsys.readouterr().out
    with node.reading() as session:
        rows = list(session.scalars(select(AccessRow)))
    assert {row.action for row in rows} == {AccessAction.ADMINISTER}
    assert len(rows) == 7
    assert all(row.caller.startswith("cli:") for row in rows)
    assert GOOD not in str([vars(row) for row in rows])


def log_in_by_role(database: Database, role: str) -> str:
    with database.writing() as session:
        return open_session(
            session,
            user_name="anna",
            role=role,
            origin=SessionOrigin.LOCAL,
            now=datetime.now(UTC),
            lifetime=IDLE,
        )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("users", "add", "anna", "--role", "machine"), 2, "machine"),
        (("users", "add", "anna"), 2, "--role"),
        (("users", "add", "a b", "--role", "viewer", "--password-stdin"), 1, "no user name"),
        (("users", "add", "anna", "--role", "viewer", "--password-stdin"), 1, "12 to 256"),
        (("users", "set-password", "otto", "--password-stdin"), 1, "no user otto"),
        (("tokens", "create", "x"), 2, "--role"),
        (("tokens", "create", "x\ny", "--role", "viewer"), 1, "printable"),
        (("tokens", "revoke", "x"), 1, "no token x"),
    ],
)
def test_wrong_use_is_said_in_a_line(
    node: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    type_in(monkeypatch, "short\n")
    assert run(*arguments) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_password_that_is_not_utf_8_is_refused(
    node: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], errors: str
) -> None:
    """Its bytes would be lost, and others would do as well."""
    typed = io.BytesIO("Käse und Brötchen\n".encode("latin-1"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(typed, encoding="utf-8", errors=errors))
    assert run("users", "add", "anna", "--role", "viewer", "--password-stdin") == 1
    assert "write it in UTF-8" in capsys.readouterr().err


def test_tokens_by_command(node: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tokens", "create", "orthanc", "--role", "machine", "--days", "90", "--json") == 0
    made = said(capsys)
    assert run("tokens", "create", "script", "--role", "viewer") == 0
    token = capsys.readouterr().out.strip()
    assert token.startswith("ich_")
    now = datetime.now(UTC)
    with node.reading() as session:
        assert token_of(session, made["token"], now=now) is not None
        assert token_of(session, made["token"], now=now + timedelta(days=91)) is None
    assert run("tokens", "revoke", "script") == 0
    capsys.readouterr()
    assert run("tokens", "list") == 0
    shown = capsys.readouterr().out
    assert token not in shown
    assert made["token"] not in shown
    assert "revoked" in shown
    assert run("tokens", "list", "--json") == 0
    assert [(row["name"], row["revoked_at"] is None) for row in said(capsys)] == [
        ("orthanc", True),
        ("script", False),
    ]
