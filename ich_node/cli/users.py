"""The commands ``users`` and ``tokens``: which people and which systems may use the web service."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table

from ich_node.cli.moments import local
from ich_node.cli.settings import Loader, actor, open_database, settings_of
from ich_node.cli.terminal import cell, console, print_json, say
from ich_node.database import tokens as kept_tokens
from ich_node.database import users as kept_users
from ich_node.database.access import Access, AccessAction, record_access
from ich_node.database.engine import Session
from ich_node.database.sessions import end_sessions_of, open_sessions
from ich_node.web import passwords
from ich_node.web.caller import Role

_PEOPLE = [Role.VIEWER.value, Role.RADIOLOGIST.value, Role.ADMIN.value]
_json = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
_role = click.option("--role", type=click.Choice(_PEOPLE), required=True, help="What this person may do.")
_stdin = click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")


@click.group()
def users() -> None:
    """People who log in by a password that this node keeps the hash of.

    They can do so where web.login.local_users is true.
    """


@users.command("list")
@_json
@click.pass_obj
def list_users(load: Loader, as_json: bool) -> None:
    """Show everybody, and how often each is logged in; those of the hospital's own login too."""
    idle = timedelta(minutes=settings_of(load).web.login.idle_minutes)
    with open_database(load).reading() as session:
        found = kept_users.users(session)
        logged_in = open_sessions(session, now=datetime.now(UTC), idle=idle)
    known = {user.name for user in found}
    rows = [{**vars(user), "sessions": logged_in.get(user.name, 0)} for user in found]
    rows += [{"name": name, "sessions": count} for name, count in logged_in.items() if name not in known]
    if as_json:
        print_json([_plain(row) for row in rows])
        return
    if not rows:
        say("Nobody yet: 'ich-node users add NAME --role ROLE' lets somebody in.")
        return
    table = Table(box=None, header_style="bold")
    for title in ("Name", "Role", "Sessions", "Password of", "Disabled"):
        table.add_column(title, no_wrap=True, justify="right" if title == "Sessions" else "left")
    for row in rows:
        table.add_row(
            cell(row["name"]),
            cell(row.get("role", "by OpenID Connect")),
            str(row["sessions"]),
            _moment(row.get("password_changed_at")),
            _moment(row.get("disabled_at")),
        )
    console.print(table)


@users.command("add")
@click.argument("name")
@_role
@_stdin
@_json
@click.pass_obj
def add_user(load: Loader, name: str, role: str, password_stdin: bool, as_json: bool) -> None:
    """Let somebody log in."""
    name = kept_users.user_name(name)
    database = open_database(load)
    with database.reading() as session:
        if kept_users.password_of(session, name) is not None:
            raise kept_users.UserError(
                f"there is a user {name} already: 'ich-node users set-password {name}' changes the password"
            )
    password_hash = _new_hash(name, password_stdin)
    now = datetime.now(UTC)
    with database.writing(durable=True) as session:
        kept_users.add_user(session, name=name, role=role, password_hash=password_hash, now=now)
        _record(load, session, f"user {name} was added as {role}")
    _say(as_json, f"{name} may log in as {role}.", name=name, role=role)
    if not settings_of(load).web.login.local_users:
        say("note: web.login.local_users is false, so nobody can log in by a password yet", err=True)


@users.command("set-password")
@click.argument("name")
@_stdin
@_json
@click.pass_obj
def set_password(load: Loader, name: str, password_stdin: bool, as_json: bool) -> None:
    """Change a password; whoever is logged in by the old one is logged out."""
    name = kept_users.user_name(name)
    database = open_database(load)
    with database.reading() as session:
        _must_exist(session, name)
    password_hash = _new_hash(name, password_stdin)
    with database.writing(durable=True) as session:
        ended = kept_users.set_password(
            session, name=name, password_hash=password_hash, now=datetime.now(UTC)
        )
        _record(load, session, f"the password of {name} was changed")
    _say(as_json, f"{name} has a new password; {_ended(ended)}.", name=name, sessions_ended=ended)


@users.command("set-role")
@click.argument("name")
@click.argument("role", type=click.Choice(_PEOPLE))
@_json
@click.pass_obj
def set_role(load: Loader, name: str, role: str, as_json: bool) -> None:
    """Change what somebody may do, from the next login on."""
    name = kept_users.user_name(name)
    with open_database(load).writing(durable=True) as session:
        ended = kept_users.set_role(session, name=name, role=role)
        _record(load, session, f"user {name} is {role} now")
    _say(as_json, f"{name} is {role} now; {_ended(ended)}.", name=name, role=role, sessions_ended=ended)


@users.command("disable")
@click.argument("name")
@_json
@click.pass_obj
def disable_user(load: Loader, name: str, as_json: bool) -> None:
    """Let somebody in no more, and log him out everywhere."""
    name = kept_users.user_name(name)
    with open_database(load).writing(durable=True) as session:
        ended = kept_users.disable_user(session, name=name, now=datetime.now(UTC))
        _record(load, session, f"user {name} was disabled")
    _say(as_json, f"{name} is let in no more; {_ended(ended)}.", name=name, sessions_ended=ended)


@users.command("enable")
@click.argument("name")
@_json
@click.pass_obj
def enable_user(load: Loader, name: str, as_json: bool) -> None:
    """Let somebody in again."""
    name = kept_users.user_name(name)
    with open_database(load).writing(durable=True) as session:
        kept_users.enable_user(session, name=name)
        _record(load, session, f"user {name} was enabled")
    _say(as_json, f"{name} may log in again.", name=name)


@users.command("remove")
@click.argument("name")
@_json
@click.pass_obj
def remove_user(load: Loader, name: str, as_json: bool) -> None:
    """Forget somebody; what was said and looked at under the name stays in the records."""
    name = kept_users.user_name(name)
    with open_database(load).writing(durable=True) as session:
        ended = kept_users.remove_user(session, name=name)
        _record(load, session, f"user {name} was removed")
    _say(as_json, f"{name} is removed; {_ended(ended)}.", name=name, sessions_ended=ended)


@users.command("log-out")
@click.argument("name")
@_json
@click.pass_obj
def log_out(load: Loader, name: str, as_json: bool) -> None:
    """Log somebody out everywhere, also who came by the hospital's own login."""
    with open_database(load).writing(durable=True) as session:
        ended = end_sessions_of(session, name)
        _record(load, session, f"{name} was logged out")
    _say(as_json, f"{_ended(ended).capitalize()}.", name=name, sessions_ended=ended)


@click.group()
def tokens() -> None:
    """Bearer tokens of systems, for /dicom-web, /api and /metrics."""


@tokens.command("list")
@_json
@click.pass_obj
def list_tokens(load: Loader, as_json: bool) -> None:
    """Show all tokens; what they are is not known here."""
    with open_database(load).reading() as session:
        found = kept_tokens.tokens(session)
    if as_json:
        print_json([_plain(vars(token)) for token in found])
        return
    if not found:
        say("None yet: 'ich-node tokens create NAME --role ROLE' makes one.")
        return
    table = Table(box=None, header_style="bold")
    for title in ("Name", "Role", "State", "Last used", "Expires", "Made by"):
        table.add_column(title, no_wrap=True)
    for token in found:
        table.add_row(
            cell(token.name),
            cell(token.role),
            _token_state(token),
            _moment(token.last_used_at),
            _moment(token.expires_at),
            cell(token.created_by),
        )
    console.print(table)


@tokens.command("create")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    required=True,
    help="machine: send images and read metrics, see no study; the others as for people.",
)
@click.option("--days", type=click.IntRange(1, 3650), help="Days until it expires; without it never.")
@_json
@click.pass_obj
def create_token(load: Loader, name: str, role: str, days: int | None, as_json: bool) -> None:
    """Let a system in, and print its token, which is not shown again."""
    if not 0 < len(name) <= 64 or not name.isprintable():
        raise kept_tokens.TokenError("a token's name has 1 to 64 printable characters")
    now = datetime.now(UTC)
    expires_at = None if days is None else now + timedelta(days=days)
    with open_database(load).writing(durable=True) as session:
        token = kept_tokens.create_token(
            session, name=name, role=role, created_by=actor(), now=now, expires_at=expires_at
        )
        _record(load, session, f"token {name} was made for {role}")
    if as_json:
        print_json(_plain({"name": name, "role": role, "expires_at": expires_at, "token": token}))
        return
    say(f"The token of {name} ({role}); it is not shown again:", err=True)
    say(token)


@tokens.command("revoke")
@click.argument("name")
@_json
@click.pass_obj
def revoke_token(load: Loader, name: str, as_json: bool) -> None:
    """Let a system in no more."""
    with open_database(load).writing(durable=True) as session:
        kept_tokens.revoke_token(session, name=name, now=datetime.now(UTC))
        _record(load, session, f"token {name} was revoked")
    _say(as_json, f"The token of {name} is revoked.", name=name)


def _new_hash(name: str, from_stdin: bool) -> str:
    if from_stdin:
        try:
            password = sys.stdin.readline().rstrip("\r\n")
        except UnicodeDecodeError:
            raise passwords.WeakPassword(
                "the password on standard input is not UTF-8: write it in UTF-8"
            ) from None
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    passwords.check_strength(password, name)
    return passwords.hash_password(password)


def _must_exist(session: Session, name: str) -> None:
    if kept_users.password_of(session, name) is None:
        raise kept_users.UserError(f"there is no user {name}: 'ich-node users list' names all")


def _record(load: Loader, session: Session, detail: str) -> None:
    access = Access(
        at=datetime.now(UTC),
        caller=actor(),
        role=Role.ADMIN,
        source="",
        action=AccessAction.ADMINISTER,
        detail=detail,
    )
    record_access(session, access, export=bool(settings_of(load).web.audit.host))


def _say(as_json: bool, words: str, **facts: Any) -> None:
    if as_json:
        print_json(facts)
    else:
        say(words)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}


def _moment(at: datetime | None) -> str:
    return local(at.isoformat()) if at is not None else ""


def _ended(count: int) -> str:
    return f"{count} session{'' if count == 1 else 's'} ended"


def _token_state(token: kept_tokens.Token) -> str:
    if token.revoked_at is not None:
        return "revoked"
    expired = token.expires_at is not None and token.expires_at <= datetime.now(UTC)
    return "expired" if expired else "valid"
