"""The login of the web service, without sockets: who gets in, who does not, and what is written down of it."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from argon2 import PasswordHasher
from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.routing import iter_route_contexts
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update
from starlette.exceptions import HTTPException

from ich_node.database import access
from ich_node.database.access import AccessLog
from ich_node.database.engine import Database
from ich_node.database.login_failures import FREE_FOR_A_USER
from ich_node.database.sessions import SessionOrigin, open_session
from ich_node.database.tokens import create_token, revoke_token
from ich_node.database.users import add_user, disable_user, set_role
from ich_node.database.web_tables import AccessRow, LoginFailureRow, SessionRow
from ich_node.errors import TransientError
from ich_node.settings import Settings
from ich_node.web import create_app, passwords, sessions
from ich_node.web.security import own_address
from tests.stored_studies import StoredStudies
from tests.unit.test_audit_export import an_access

GOOD = "correct horse battery"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
STUDY = "1.2.3.1"
HOST = "ich-node.hospital.example"
NO_DESK = (404, 405)
"""Nobody takes objects in these tests, but whoever gets this answer may send some."""
PAGE = "text/html,application/xhtml+xml"


@dataclass
class Site:
    """A node that is reached by https under a name, and a browser that keeps its cookies."""

    studies: StoredStudies
    web: dict[str, Any]
    cookies: dict[str, str] = field(default_factory=dict)
    address: str = f"https://{HOST}"
    client: str = "192.0.2.9"

    def __post_init__(self) -> None:
        settings = Settings.model_validate({"data_dir": self.studies.settings.data_dir, "web": self.web})
        self.app = create_app(settings, self.studies.database)

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"accept": PAGE, "cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())}
        headers |= more.pop("headers", {})

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(
                app=self.app, raise_app_exceptions=False, client=(self.client, 40000)
            )
            async with httpx.AsyncClient(transport=transport, base_url=self.address) as client:
                return await client.request(method, path, headers=headers, **more)

        response = asyncio.run(ask())
        for cookie in response.headers.get_list("set-cookie"):
            name, _, value = cookie.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
            if not self.cookies[name]:
                del self.cookies[name]
        return response

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.ask("GET", path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    def log_in(self, name: str = "anna", password: str = GOOD, **more: str) -> httpx.Response:
        form = {"name": name, "password": password, **more}
        return self.ask("POST", "/login", data=form, headers={"origin": self.address})

    def csrf(self) -> str:
        found = re.search(r'name="csrf-token" content="([^"]*)"', self.get("/").text)
        assert found is not None
        return found[1]

    def accesses(self) -> list[AccessRow]:
        with self.studies.database.reading() as session:
            return list(session.scalars(select(AccessRow).order_by(AccessRow.id)))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with three users and a study; making its schema takes longer than a test."""
    folder = tmp_path_factory.mktemp("filled")
    database = Database(f"sqlite:///{folder / 'node.sqlite'}")
    database.upgrade()
    now = datetime.now(UTC)
    with database.writing() as session:
        for name, role in (("vera", "viewer"), ("anna", "radiologist"), ("root", "admin")):
            add_user(session, name=name, role=role, password_hash=CHEAP.hash(GOOD), now=now)
    StoredStudies(database=database, results_dir=folder).receive(STUDY, at=now, patient_name="Novak^Jan")
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.dispose()
    return folder / "node.sqlite"


@pytest.fixture
def studies(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoredStudies]:
    # Real hashes, which the tests need not wait for.
    monkeypatch.setattr(passwords, "_hasher", CHEAP)
    monkeypatch.setattr(passwords, "_of_nobody", CHEAP.hash("x"))
    shutil.copyfile(filled, tmp_path / "node.sqlite")
    database = Database(f"sqlite:///{tmp_path / 'node.sqlite'}")
    yield StoredStudies(database=database, results_dir=tmp_path / "results")
    database.dispose()


@pytest.fixture
def site(studies: StoredStudies) -> Site:
    return Site(
        studies=studies,
        web={
            "host": "0.0.0.0",
            "trusted_hosts": [HOST],
            "login": {"local_users": True},
            "tls": {"certificate": "/etc/web.pem", "key": "/etc/web.key"},
        },
    )


# who is not logged in


@pytest.mark.parametrize(
    "path", ["/", f"/studies/{STUDY}", "/worklist?a=1&b=%2F", "/deliveries", "/events", "/no/such/page"]
)
def test_a_person_is_led_to_the_login_and_back(site: Site, path: str) -> None:
    response = site.get(path)
    assert response.status_code == 303
    assert response.text == ""
    location = response.headers["location"]
    assert location.startswith("/login")
    page = site.get(location)
    assert page.status_code == 200
    assert "Novak" not in page.text
    wanted = re.search(r'name="next" value="([^"]*)"', page.text)
    assert wanted is not None
    back = site.log_in(next=wanted[1].replace("&amp;", "&"))
    assert back.status_code == 303
    assert back.headers["location"] == path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/dicom-web/studies"),
        ("POST", "/dicom-web/studies"),
        ("GET", "/api/worklist"),
        ("GET", "/metrics"),
        ("POST", f"/studies/{STUDY}/reviews"),
        ("POST", "/logout"),
        ("DELETE", "/"),
    ],
)
def test_systems_and_changes_are_told_to_say_who_they_are(site: Site, method: str, path: str) -> None:
    response = site.ask(method, path)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == 'Bearer realm="ich_node"'
    assert "Novak" not in response.text


def test_every_address_asks_who_calls_and_none_lets_a_machine_look(site: Site) -> None:
    paths = {re.sub(r"\{.*?\}", "1.2.3.1", one.path or "/") for one in iter_route_contexts(site.app.routes)}
    with site.studies.database.writing() as session:
        token = create_token(
            session, name="modality", role="machine", created_by="x", now=datetime.now(UTC), expires_at=None
        )
    closed = sorted(path for path in paths if not path.startswith(("/login", "/health/", "/static")))
    assert len(closed) > 40
    for path in closed:
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            assert site.ask(method, path).status_code in (303, 401), path
            answer = site.ask(method, path, headers={"authorization": f"Bearer {token}"})
            sends = path == "/metrics" or (method == "POST" and path.startswith("/dicom-web/studies"))
            assert answer.status_code in ((200, *NO_DESK) if sends else (303, 401, 403)), path


def test_a_script_of_an_open_page_learns_that_its_session_is_over(site: Site) -> None:
    assert site.get("/worklist", accept="*/*").status_code == 401


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/static/style.css", "/login"])
def test_what_names_nobody_is_open(site: Site, path: str) -> None:
    assert site.get(path).status_code == 200


def test_without_login_whoever_uses_this_machine_is_let_in(studies: StoredStudies) -> None:
    site = Site(studies=studies, web={}, address="http://127.0.0.1:8080", client="127.0.0.1")
    page = site.get("/")
    assert page.status_code == 200
    assert "Novak" in page.text
    assert "Log out" not in page.text
    assert site.get("/login?next=/deliveries").headers["location"] == "/deliveries"
    assert site.log_in().status_code == 404


# logging in and out


def test_logging_in_gives_a_cookie_that_only_this_site_gets(site: Site) -> None:
    response = site.log_in()
    assert response.status_code == 303
    name, *flags = response.headers["set-cookie"].split("; ")
    assert name.startswith("__Host-ich_session=")
    assert set(flags) == {"HttpOnly", "Path=/", "SameSite=strict", "Secure"}
    page = site.get("/")
    assert "Novak" in page.text
    assert "anna" in page.text
    assert response.headers["strict-transport-security"] == "max-age=31536000"


def test_on_this_machine_the_cookie_works_without_https(studies: StoredStudies) -> None:
    site = Site(
        studies=studies,
        web={"login": {"local_users": True}},
        address="http://localhost:8080",
        client="127.0.0.1",
    )
    assert site.get("/").status_code == 303
    response = site.log_in()
    name, *flags = response.headers["set-cookie"].split("; ")
    assert name.startswith("ich_session=")
    assert set(flags) == {"HttpOnly", "Path=/", "SameSite=strict"}
    assert "strict-transport-security" not in response.headers
    assert site.get("/").status_code == 200


def test_logging_out_ends_the_session_here_and_there(site: Site) -> None:
    site.log_in()
    cookies, token = dict(site.cookies), site.csrf()
    response = site.ask("POST", "/logout", data={"csrf_token": token}, headers={"origin": site.address})
    assert response.status_code == 303
    assert response.headers["clear-site-data"] == '"cache"'
    assert site.cookies == {}
    site.cookies = cookies
    assert site.get("/").status_code == 303
    assert [(row.action, row.caller, row.outcome) for row in site.accesses() if "LOG" in row.action] == [
        ("LOGIN", "anna", "SUCCESS"),
        ("LOGOUT", "anna", "SUCCESS"),
    ]


def test_a_cookie_from_before_the_login_is_worth_nothing(site: Site) -> None:
    """Session fixation."""
    site.cookies["__Host-ich_session"] = "planted"
    site.log_in()
    assert site.cookies["__Host-ich_session"] != "planted"
    mine = site.cookies["__Host-ich_session"]
    site.log_in("vera")
    assert site.cookies["__Host-ich_session"] != mine
    for cookie in ("planted", mine):
        site.cookies["__Host-ich_session"] = cookie
        assert site.get("/").status_code == 303


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("anna", "wrong"),
        ("nobody", GOOD),
        ("", ""),
        ("anna' OR '1'='1", "x"),
        ("anna\x00", GOOD),
        ("anna", GOOD + "\x00"),
        ("anna", "x" * 60_000),
    ],
)
def test_a_wrong_name_or_password_is_refused_in_the_same_words(site: Site, name: str, password: str) -> None:
    response = site.log_in(name, password)
    assert response.status_code == 403
    assert "The name or the password is not right." in response.text
    assert "set-cookie" not in response.headers
    (row,) = site.accesses()
    assert (row.action, row.outcome) == ("LOGIN", "REFUSED")
    assert row.caller == ("anna" if name == "anna" else "unknown")
    assert "nobody" not in str(vars(row))
    assert GOOD not in str(vars(row))


@pytest.mark.parametrize("name", ["anna", "nobody", "", "a b"])
def test_a_name_that_is_not_known_takes_as_long(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    verified: list[str] = []

    class Counting(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
            verified.append(str(hash).split("$")[3])  # its cost
            return super().verify(hash, password)

    monkeypatch.setattr(passwords, "_hasher", Counting(time_cost=1, memory_cost=8, parallelism=1))
    assert site.log_in(name, "wrong").status_code == 403
    assert verified == ["m=8,t=1,p=1"]


def test_somebody_who_is_disabled_cannot_log_in_and_is_out(site: Site) -> None:
    site.log_in()
    with site.studies.database.writing() as session:
        disable_user(session, name="anna", now=datetime.now(UTC))
    assert site.get("/").status_code == 303
    assert site.log_in().status_code == 403


def test_a_role_that_is_taken_away_is_gone_at_once(site: Site) -> None:
    site.log_in("root")
    with site.studies.database.writing() as session:
        set_role(session, name="root", role="viewer")
    assert site.get("/deliveries").status_code == 303


@pytest.mark.parametrize("column", ["last_seen_at", "expires_at"])
def test_a_session_expires(site: Site, column: str) -> None:
    site.log_in()
    with site.studies.database.writing() as session:
        session.execute(update(SessionRow).values({column: datetime.now(UTC) - timedelta(minutes=31)}))
    for accept, status in ((PAGE, 303), ("*/*", 401)):
        response = site.get("/", accept=accept)
        assert response.status_code == status
        # Nobody has logged out, and the next user of the browser must not find pictures in its cache.
        assert response.headers["clear-site-data"] == '"cache"'
    site.cookies = {}
    assert "clear-site-data" not in site.get("/").headers


def test_a_session_that_is_used_goes_on(site: Site) -> None:
    site.log_in()
    early = datetime.now(UTC) - timedelta(minutes=29)
    with site.studies.database.writing() as session:
        session.execute(update(SessionRow).values(last_seen_at=early))
    assert site.get("/").status_code == 200
    with site.studies.database.reading() as session:
        assert session.scalars(select(SessionRow)).one().last_seen_at > early + timedelta(minutes=28)


def failed_at(site: Site, at: datetime) -> None:
    with site.studies.database.writing() as session:
        session.execute(update(LoginFailureRow).values(at=at))


def test_guessing_is_slowed_down_and_does_not_reach_the_password(site: Site) -> None:
    for _ in range(FREE_FOR_A_USER):
        assert site.log_in(password="guess").status_code == 403
    failed_at(site, datetime.now(UTC) + timedelta(minutes=1))  # nobody waits longer for it
    response = site.log_in()  # the right one, too early
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) == 1
    assert "Wait 1 second," in response.text
    assert len(site.accesses()) == FREE_FOR_A_USER
    assert site.log_in("vera").status_code == 303  # others are not held up
    failed_at(site, datetime.now(UTC) - timedelta(seconds=2))
    assert site.log_in().status_code == 303
    with site.studies.database.reading() as session:
        assert not list(session.scalars(select(LoginFailureRow)))


def test_a_flood_of_guesses_is_no_load_on_who_writes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(FREE_FOR_A_USER):
        site.log_in(password="guess")
    failed_at(site, datetime.now(UTC) + timedelta(minutes=1))

    def taken(*, durable: bool = False) -> Any:
        raise AssertionError("the write lock was taken")

    monkeypatch.setattr(site.studies.database, "writing", taken)
    assert site.log_in(password="guess").status_code == 429


def test_an_old_hash_is_made_stronger(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=2, memory_cost=16, parallelism=1))
    for _ in range(2):
        assert site.log_in().status_code == 303


# where to go after it


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example",
        "/\t/evil.example",
        "/%0d%0aSet-Cookie:x=1\r\nX: y",
        "javascript:alert(1)",
        "evil.example",
        "",
        "/ //evil.example",
        "/login?next=/login",
        "/logout",
        "/" + "a" * 3000,
        "/é",
    ],
)
def test_the_login_leads_to_pages_of_this_site_only(site: Site, address: str) -> None:
    response = site.log_in(next=address)
    assert response.status_code == 303
    assert response.headers["location"] == "/"
    assert "x" not in response.cookies


@given(st.text(max_size=40))
def test_any_address_is_one_of_this_site(text: str) -> None:
    address = own_address(text)
    url = httpx.URL("https://node/login").join(address)
    assert url.host == "node"
    assert address.startswith("/")
    assert not set(address) & set("\r\n\t\\")


def test_a_link_from_another_site_is_followed_with_the_cookie(site: Site) -> None:
    """A browser does not send a cookie that is SameSite=Strict with it, but with the request that our page makes."""
    cookies = dict(site.cookies)
    response = site.ask(
        "GET", f"/studies/{STUDY}?a=1&b=%22", headers={"sec-fetch-site": "cross-site", "cookie": ""}
    )
    assert response.status_code == 200
    assert f'content="0;url=/studies/{STUDY}?a=1&amp;b=%22"' in response.text
    assert "Novak" not in response.text
    assert site.cookies == cookies
    other = site.ask("GET", f"{site.address}//evil.example/x", headers={"sec-fetch-site": "cross-site"})
    assert 'content="0;url=/"' in other.text


# what other sites try


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": f"http://{HOST}"},
        {"origin": f"https://{HOST}:444"},
        {"origin": f"https://{HOST}", "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_site_can_change_nothing_even_with_the_token(site: Site, headers: dict[str, str]) -> None:
    site.log_in()
    form = {"csrf_token": site.csrf()}
    assert site.ask("POST", "/logout", data=form, headers=headers).status_code == 403
    assert site.ask("POST", "/login", data={"name": "vera"}, headers=headers).status_code == 403
    assert site.get("/").status_code == 200


@pytest.mark.parametrize("token", [None, "", "x", "é"])
def test_nothing_changes_without_the_token_of_the_session(site: Site, token: str | None) -> None:
    site.log_in("vera")
    foreign = site.csrf()
    site.log_in()
    mine = site.csrf()
    assert foreign != mine
    for shown in (token, foreign):
        form = {} if shown is None else {"csrf_token": shown}
        assert site.ask("POST", "/logout", data=form).status_code == 403
    assert site.ask("POST", "/logout", headers={"x-csrf-token": foreign}).status_code == 403
    assert site.ask("POST", "/logout", json={"csrf_token": mine}).status_code == 403
    assert site.ask("POST", f"/logout?csrf_token={mine}").status_code == 403
    assert site.ask("POST", "/logout", data={"a": "b" * 70_000, "csrf_token": mine}).status_code == 403
    assert {row.detail for row in site.accesses() if row.outcome == "REFUSED"} == {
        "no CSRF token: POST /logout"
    }
    assert site.get("/").status_code == 200
    assert site.ask("POST", "/logout", headers={"x-csrf-token": mine}).status_code == 303


def test_a_form_is_still_there_after_its_token_was_read(site: Site) -> None:

    async def echo(request: Request) -> dict[str, str]:
        return {key: str(value) for key, value in (await request.form()).items()}

    site.app.router.add_api_route("/echo", echo, methods=["POST"])
    site.log_in()
    form = {"csrf_token": site.csrf(), "comment": "ä" * 10_000}
    assert site.ask("POST", "/echo", data=form).json() == form


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"{HOST}.evil.example", "0.0.0.0", "192.0.2.1", "", f"user@{HOST}", f"{HOST}/x", "[::1"],
)
def test_other_names_are_not_answered(site: Site, host: str) -> None:
    for path in ("/", "/login", "/health/live", "/static/style.css"):
        assert site.get(path, host=host).status_code == 421


@pytest.mark.parametrize("host", [HOST, HOST.upper(), f"{HOST}:8443", f"{HOST}."])
def test_the_name_is_known_in_any_spelling(site: Site, host: str) -> None:
    assert site.get("/health/live", host=host).status_code == 200


def test_nothing_is_answered_without_https(site: Site) -> None:
    site.address = f"http://{HOST}"
    response = site.log_in()
    assert response.status_code == 403
    assert "https://" in response.text
    site.address = "http://localhost"  # what a caller from elsewhere may write as well
    assert site.get("/login").status_code == 403
    site.client = "127.0.0.1"
    assert site.get("/login").status_code == 200


def test_every_answer_carries_the_headers(site: Site) -> None:
    answers = [
        site.get("/"),
        site.get("/login"),
        site.get("/", host="evil.example"),
        site.log_in(password="x"),
        site.get("/metrics"),
        site.get("/static/style.css"),
    ]
    site.log_in()
    answers += [site.get("/"), site.get("/none"), site.ask("POST", "/logout")]
    for answer in answers:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "form-action 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("body", [b"x" * 100_000, b"&" * 1000, b"\xff=\xff"])
def test_an_odd_form_is_refused_within_bounds(site: Site, body: bytes) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert site.ask("POST", "/login", content=body, headers=headers).status_code in (400, 403)
    assert site.ask("POST", "/login", content=body, headers={"content-type": "x"}).status_code == 400


# tokens


@dataclass
class Machine:
    """A system with a token."""

    site: Site
    role: str
    name: str = "system"

    def __post_init__(self) -> None:
        with self.site.studies.database.writing() as session:
            self.token = create_token(
                session,
                name=self.name,
                role=self.role,
                created_by="me",
                now=datetime.now(UTC),
                expires_at=None,
            )

    def ask(self, method: str, path: str) -> int:
        headers = {"authorization": f"Bearer {self.token}", "accept": "*/*"}
        return self.site.ask(method, path, headers=headers).status_code


def test_a_token_opens_what_is_for_systems_and_no_page(site: Site) -> None:
    machine = Machine(site, "admin")
    assert machine.ask("GET", "/metrics") == 200
    assert machine.ask("POST", "/dicom-web/studies") in NO_DESK
    for path in ("/", f"/studies/{STUDY}", "/deliveries"):
        assert machine.ask("GET", path) == 401


def test_a_machine_sees_no_study(site: Site) -> None:
    machine = Machine(site, "machine")
    assert machine.ask("GET", "/metrics") == 200
    assert machine.ask("POST", "/dicom-web/studies") in NO_DESK
    for method, path in (
        ("GET", "/dicom-web/studies"),
        ("GET", f"/dicom-web/studies/{STUDY}/metadata"),
        ("POST", "/dicom-web/workitems/1.2"),
        ("GET", "/api/worklist"),
        ("POST", f"/api/studies/{STUDY}/reprocess"),
    ):
        assert machine.ask(method, path) == 403
    refused = [row for row in site.accesses() if row.outcome == "REFUSED"]
    assert len(refused) == 5
    assert {row.caller for row in refused} == {"system"}
    assert {row.study_instance_uid for row in refused} == {None, STUDY}


def test_a_viewer_sends_no_images(site: Site) -> None:
    assert Machine(site, "viewer").ask("POST", "/dicom-web/studies") == 403
    assert Machine(site, "radiologist", "r").ask("POST", "/dicom-web/studies") in NO_DESK


def test_a_token_that_was_revoked_opens_nothing(site: Site) -> None:
    machine = Machine(site, "viewer")
    assert machine.ask("GET", "/metrics") == 200
    with site.studies.database.writing() as session:
        revoke_token(session, name="system", now=datetime.now(UTC))
    for _ in range(20):
        assert machine.ask("GET", "/metrics") == 401
    (row,) = site.accesses()  # a flood of them fills no table
    assert (row.caller, row.role, row.outcome, row.detail) == ("unknown", "", "REFUSED", "unknown token")


@pytest.mark.parametrize("header", ["Bearer", "Bearer x", "Bearer \udcff", "Basic YTpi", "x" * 5000])
def test_an_odd_authorization_opens_nothing(site: Site, header: str) -> None:
    site.log_in()
    expected = 200 if not header.startswith("Bearer") else 401
    headers = {"authorization": header.encode("utf-8", "surrogateescape").decode("latin-1")}
    response = site.ask("GET", "/metrics", headers={k: v.encode("latin-1") for k, v in headers.items()})
    assert response.status_code == expected


def test_a_session_opens_what_is_for_systems_as_well_and_needs_its_token_to_change(site: Site) -> None:
    site.log_in("root")
    assert site.get("/metrics", accept="*/*").status_code == 200
    assert site.ask("POST", "/dicom-web/studies").status_code == 403
    headers = {"x-csrf-token": site.csrf()}
    assert site.ask("POST", "/dicom-web/studies", headers=headers).status_code in NO_DESK


# what is written down


def test_an_access_that_is_refused_is_written_down(site: Site) -> None:

    def forbidden(request: Request) -> None:
        raise HTTPException(403, "Radiologists only.")

    site.app.router.add_api_route("/studies/{uid}/x", forbidden)
    site.log_in("vera")
    assert site.get(f"/studies/{STUDY}/x").status_code == 403
    row = site.accesses()[-1]
    assert (row.caller, row.role, row.source, row.outcome) == ("vera", "viewer", "192.0.2.9", "REFUSED")
    assert (row.action, row.study_instance_uid, row.detail) == ("VIEW", STUDY, f"GET /studies/{STUDY}/x")


@pytest.mark.parametrize("path", ["/", "/worklist", "/api/worklist"])
def test_what_was_searched_for_stands_in_no_record(site: Site, path: str) -> None:
    site.log_in()
    assert site.get(f"{path}?q=Novak+Jan&priority=STAT&q=Roe%26x=Doe").status_code == 200
    row = site.accesses()[-1]
    assert (row.action, row.outcome) == ("QUERY", "SUCCESS")
    assert str(row.detail).endswith("worklist?priority&q")
    site.get(path)
    assert str(site.accesses()[-1].detail).endswith("worklist")


def test_a_login_that_failed_is_written_down_with_the_role_that_was_tried(site: Site) -> None:
    site.log_in("root", "wrong")
    site.log_in("nobody", "wrong")
    assert [(row.caller, row.role) for row in site.accesses()] == [("root", "admin"), ("unknown", "")]


def test_an_address_or_a_body_that_is_not_as_it_must_be(site: Site) -> None:
    site.log_in()
    token = site.csrf()
    page = site.get("/api/worklist?limit=x")
    assert page.status_code == 422
    assert "is not as it must be" in page.text
    headers = {"accept": "*/*", "x-csrf-token": token, "content-type": "application/json"}
    for body in (b'{"verdict": "\\ud800"}', b'{"verdict": "SEEN", "\\ud800": 1}', b'{"verdict": "secret"}'):
        answer = site.ask("POST", f"/api/studies/{STUDY}/review", content=body, headers=headers)
        assert answer.status_code == 422
        assert {"type", "loc", "msg"} == set(answer.json()["detail"][0])
        assert "secret" not in answer.text


def test_a_page_comes_when_the_access_cannot_be_written_and_it_is_written_later(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site.log_in()
    database = site.studies.database

    def broken(*, durable: bool = False) -> Any:
        raise TransientError("the database did not answer: disk I/O error")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(database, "writing", broken)
        assert "Novak" in site.get(f"/studies/{STUDY}").text
        assert site.get(f"/studies/{STUDY}").status_code == 200
    assert "the access log cannot be written" in caplog.text
    assert "Novak" not in caplog.text
    before = len(site.accesses())
    assert before == 1
    assert site.get(f"/studies/{STUDY}").status_code == 200
    assert len(site.accesses()) >= before + 2


def test_accesses_that_cannot_be_written_do_not_fill_the_memory(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(access, "MOST_UNWRITTEN", 3)
    log = AccessLog(site.studies.database)
    with monkeypatch.context() as patch:
        patch.setattr(site.studies.database, "writing", _away)
        for number in range(5):
            log.add(an_access(caller=f"user{number}"))
    log.add(an_access(caller="last"))
    assert [row.caller for row in site.accesses()] == ["user2", "user3", "user4", "last"]


def _away(*, durable: bool = False) -> Any:
    raise TransientError("away")


def test_nobody_is_let_in_while_the_database_is_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.log_in()

    def away() -> Any:
        raise TransientError("the database did not answer: gone")

    monkeypatch.setattr(site.studies.database, "reading", away)
    response = site.get("/")
    assert response.status_code == 503
    assert "nobody can be let in" in response.text
    assert site.get("/metrics", accept="*/*").status_code == 503


# an answer that takes long


def test_a_long_answer_ends_when_its_reader_is_logged_out(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(sessions, "_LOOK_AGAIN_S", 0.0)
    sent: list[int] = []

    async def events(request: Request) -> StreamingResponse:
        async def many() -> AsyncIterator[str]:
            for number in range(1000):
                sent.append(number)
                if number == 3:
                    with site.studies.database.writing() as session:
                        disable_user(session, name="anna", now=datetime.now(UTC))
                yield f"data: {number}\n\n"

        return StreamingResponse(many(), media_type="text/event-stream")

    site.app.router.add_api_route("/long", events, methods=["GET"])
    site.log_in()
    response = site.get("/long", accept="text/event-stream")
    assert response.status_code == 200
    assert response.text == "".join(f"data: {number}\n\n" for number in range(3))
    assert len(sent) < 10


def test_somebody_who_was_let_in_otherwise_is_not(site: Site) -> None:
    """A session that the hospital's login has begun does not depend on a user of this node."""
    with site.studies.database.writing() as session:
        token = open_session(
            session,
            user_name="otto",
            role="admin",
            origin=SessionOrigin.OIDC,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
        )
    site.cookies["__Host-ich_session"] = token
    assert site.get("/deliveries").status_code == 200
