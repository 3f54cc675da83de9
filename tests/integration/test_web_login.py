"""Logging in over real sockets: https, the hospital's own login, a proxy, a browser."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import uvicorn
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey
from sqlalchemy import delete, select

from ich_node.cli import main
from ich_node.database.engine import Database
from ich_node.database.tokens import create_token
from ich_node.database.web_tables import AccessRow, LoginFailureRow
from ich_node.settings import Settings
from ich_node.web import create_app
from ich_node.web.certificate import WebCertificate
from tests.certificates import Authority
from tests.oidc_provider import CLIENT_ID, CLIENT_SECRET, OidcProvider, oidc_provider
from tests.stored_studies import StoredStudies

if TYPE_CHECKING:
    from playwright import sync_api as playwright

CHROMIUM = Path("/usr/bin/chromium")
GOOD = "correct horse battery"
STUDY = "1.2.3.1"
PAGE = {"accept": "text/html"}
DEADLINE_S = 60.0


@dataclass
class Node:
    """A web service by https on a port of its own."""

    database: Database
    settings: Settings
    authority: Authority
    port: int
    provider: OidcProvider

    @property
    def address(self) -> str:
        return f"https://localhost:{self.port}"

    def client(self, **more: Any) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.authority.file))
        return httpx.Client(base_url=self.address, verify=context, timeout=DEADLINE_S, headers=PAGE, **more)

    def accesses(self) -> list[AccessRow]:
        with self.database.reading() as session:
            return list(session.scalars(select(AccessRow).order_by(AccessRow.id)))


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    authority = Authority(folder / "tls")
    files = authority.issue("localhost", "127.0.0.1")
    (folder / "secret").write_text(f"{CLIENT_SECRET}\n")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with oidc_provider(authority.issue("localhost")) as provider:
        settings = Settings.model_validate(
            {
                "data_dir": folder,
                "web": {
                    "login": {"local_users": True},
                    "tls": {"certificate": str(files.certificate), "key": str(files.key)},
                    "oidc": {
                        "issuer": provider.issuer,
                        "client_id": CLIENT_ID,
                        "client_secret_file": str(folder / "secret"),
                        "base_url": f"https://localhost:{port}",
                        "ca": str(authority.file),
                        "roles": {"viewer": ["all"], "radiologist": ["rad"], "admin": ["it"]},
                    },
                },
            }
        )
        database = Database(settings.database_url)
        database.upgrade()
        StoredStudies(database=database, results_dir=folder / "results").receive(
            STUDY, at=datetime.now(UTC), patient_name="Novak^Jan"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ICH_NODE_DATA_DIR", str(folder))
            patch.setattr("sys.stdin", io.StringIO(f"{GOOD}\n"))
            with pytest.raises(SystemExit):
                main(["users", "add", "anna", "--role", "radiologist", "--password-stdin"])
        certificate = WebCertificate(settings.web.tls)
        config = uvicorn.Config(
            create_app(settings, database),
            log_level="warning",
            server_header=False,
            ssl_context_factory=lambda *_: certificate.context(),
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Node(database, settings, authority, port, provider)
        server.should_exit = True
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        database.dispose()


@pytest.fixture(autouse=True)
def _as_new(node: Node) -> None:
    fresh = OidcProvider()
    for name in ("claims", "metadata", "published", "header", "is_down"):
        setattr(node.provider, name, getattr(fresh, name))
    with node.database.writing() as session:
        session.execute(delete(LoginFailureRow))


def test_https_with_a_password(node: Node) -> None:
    with node.client() as client:
        assert client.get("/").status_code == 303
        answer = client.post("/login", data={"name": "Anna", "password": GOOD, "next": "/deliveries"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/deliveries")
        assert "server" not in answer.headers
        assert re.search(
            r"^__Host-ich_session=\S+; HttpOnly; Path=/; SameSite=strict; Secure$",
            answer.headers["set-cookie"],
        )
        assert "Novak" in client.get("/").text


def test_a_renewed_certificate_is_shown_without_a_restart(node: Node) -> None:
    def serial() -> bytes:
        context = ssl.create_default_context(cafile=str(node.authority.file))
        with (
            socket.create_connection(("127.0.0.1", node.port), DEADLINE_S) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            assert secured.version() in ("TLSv1.2", "TLSv1.3")
            return secured.getpeercert(binary_form=True) or b""

    before = serial()
    tls = node.settings.web.tls
    other = node.authority.issue("localhost", "127.0.0.1")
    Path(tls.certificate).write_bytes(other.certificate.read_bytes())  # for a moment they do not fit together
    assert serial() == before
    Path(tls.key).write_bytes(other.key.read_bytes())
    assert serial() != before


def test_nothing_is_said_without_tls(node: Node) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://localhost:{node.port}/", timeout=DEADLINE_S)


def test_many_guesses_at_once_gain_nothing(node: Node) -> None:
    statuses: list[int] = []

    def guess() -> None:
        with node.client() as client:
            answer = client.post("/login", data={"name": "anna", "password": "wrong"})
            statuses.append(answer.status_code)

    threads = [threading.Thread(target=guess) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Five are free; of those that wait 1, 2, 4 ... seconds six more fit into a minute, where the machine is slow.
    assert statuses.count(403) <= 11
    assert set(statuses) == {403, 429}


def test_a_large_body_is_refused_with_an_answer(node: Node) -> None:
    with node.client() as client:
        body = b"x" * 8_000_000
        headers = {"content-type": 'multipart/related; type="application/dicom"; boundary=a'}
        assert client.post("/dicom-web/studies", content=body, headers=headers).status_code == 401


# the hospital's own login


def through_provider(node: Node, client: httpx.Client, address: str = "/") -> httpx.Response:
    """As a browser: to the provider and back."""
    begun = client.get("/login/oidc", params={"next": address})
    assert begun.status_code == 303
    context = ssl.create_default_context(cafile=str(node.authority.file))
    back = httpx.get(begun.headers["location"], verify=context, timeout=DEADLINE_S)
    assert back.status_code == 302
    return client.get(back.headers["location"])


def test_the_hospitals_login_lets_in(node: Node) -> None:
    with node.client() as client:
        begun = client.get("/login/oidc?next=/deliveries")
        query = parse_qs(urlsplit(begun.headers["location"]).query)
        assert query["scope"] == ["openid profile"]
        assert len(query["state"][0]) >= 43
        assert len(query["nonce"][0]) >= 43
        flags = begun.headers["set-cookie"].split("; ")
        assert flags[0].startswith("__Host-ich_oidc=")
        assert set(flags[1:]) == {"HttpOnly", "Max-Age=600", "Path=/", "SameSite=lax", "Secure"}
        answer = through_provider(node, client, f"/studies/{STUDY}")
        assert answer.status_code == 200
        assert f'content="0;url=/studies/{STUDY}"' in answer.text
        assert any("ich_session" in cookie for cookie in answer.headers.get_list("set-cookie"))
        page = client.get(f"/studies/{STUDY}")
        assert "Novak" in page.text
        assert "otto" in page.text
    logins = [row for row in node.accesses() if row.action == "LOGIN"]
    assert (logins[-1].caller, logins[-1].role, logins[-1].detail) == (
        "otto",
        "radiologist",
        "OIDC, radiologist",
    )


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"groups": ["x", "all"]}, "viewer"),
        ({"groups": ["all", "it", "rad"]}, "admin"),
        ({"groups": "rad"}, "radiologist"),
        ({"groups": ["all"], "aud": [CLIENT_ID, "other"], "azp": CLIENT_ID}, "viewer"),
    ],
)
def test_the_mightiest_group_counts(node: Node, claims: dict[str, Any], role: str) -> None:
    node.provider.claims |= claims
    with node.client() as client:
        assert through_provider(node, client).status_code == 200
    assert node.accesses()[-1].role == role


@pytest.mark.parametrize(
    "claims",
    [
        {"groups": []},
        {"groups": None},
        {"groups": ["other"]},
        {"groups": {"all": 1}},
        {"groups": [["all"], 1, None]},
        {"preferred_username": None},
        {"preferred_username": ["otto"]},
        {"preferred_username": " "},
        {"preferred_username": "a\x1b[2J"},
        {"iss": "https://evil.example"},
        {"iss": ["https://evil.example"]},
        {"aud": "other"},
        {"aud": [CLIENT_ID, "other"]},
        {"azp": "other"},
        {"nonce": "other"},
        {"nonce": None},
        {"exp": 1},
        {"exp": None},
        {"iat": None},
        {"iat": 2**40},
        {"sub": None},
    ],
)
def test_who_is_not_vouched_for_stays_out(node: Node, claims: dict[str, Any]) -> None:
    node.provider.claims |= claims
    with node.client() as client:
        answer = through_provider(node, client)
        assert answer.status_code == 403
        assert 'role="alert"' in answer.text
        assert client.get("/").status_code == 303
    assert (node.accesses()[-1].action, node.accesses()[-1].outcome) == ("LOGIN", "REFUSED")


def test_a_token_that_somebody_else_has_signed_is_worth_nothing(node: Node) -> None:
    mine = node.provider.key
    other = RSAKey.generate_key(2048, {"use": "sig", "kid": mine.kid})
    try:
        node.provider.key, node.provider.published = other, [mine]
        with node.client() as client:
            assert through_provider(node, client).status_code == 403
    finally:
        node.provider.key = mine


@pytest.mark.parametrize("alg", ["none", "HS256"])
def test_a_token_without_a_signature_of_the_provider_is_worth_nothing(
    node: Node, alg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The classic confusions: no signature, and the public key or the client's secret as a shared one."""
    signed = OidcProvider.id_token

    def forged(self: OidcProvider, nonce: str) -> str:
        _, claims, _ = signed(self, nonce).split(".")
        if alg == "none":
            head = base64.urlsafe_b64encode(json.dumps({"alg": "none"}).encode()).rstrip(b"=").decode()
            return f"{head}.{claims}."
        padded = claims + "=" * (-len(claims) % 4)
        key = OctKey.import_key(CLIENT_SECRET * 4)
        return jwt.encode({"alg": "HS256"}, json.loads(base64.urlsafe_b64decode(padded)), key)

    monkeypatch.setattr(OidcProvider, "id_token", forged)
    with node.client() as client:
        assert through_provider(node, client).status_code == 403


def test_a_new_key_of_the_provider_is_learned(node: Node) -> None:
    with node.client() as client:
        assert through_provider(node, client).status_code == 200
    node.provider.key = RSAKey.generate_key(2048, {"use": "sig"}, auto_kid=True)
    with node.client() as client:
        assert through_provider(node, client).status_code == 200


def test_a_login_that_was_begun_in_another_browser_is_none(node: Node) -> None:
    """Login CSRF: the attacker's code, state and all, in the victim's browser."""
    context = ssl.create_default_context(cafile=str(node.authority.file))
    with node.client() as attacker, node.client() as victim:
        begun = attacker.get("/login/oidc")
        back = httpx.get(begun.headers["location"], verify=context, timeout=DEADLINE_S).headers["location"]
        assert victim.get(back).status_code == 403
        victim.get("/login/oidc")
        assert victim.get(back).status_code == 403
        assert attacker.get(back).status_code == 200
        assert attacker.get(back).status_code == 403  # a code is good for once


@pytest.mark.parametrize(
    "query", ["", "code=x", "state=x", "error=access_denied&state=x", "code=x&state=x&iss=y"]
)
def test_an_odd_answer_is_refused(node: Node, query: str) -> None:
    with node.client() as client:
        assert client.get(f"/login/oidc/callback?{query}").status_code == 403
        client.get("/login/oidc")
        assert client.get(f"/login/oidc/callback?{query}").status_code == 403


@pytest.mark.parametrize("cookie", ["x", "e30=", "W10=", "eyJzdGF0ZSI6IDF9", "\u00e9"])
def test_an_odd_cookie_is_none(node: Node, cookie: str) -> None:
    with node.client() as client:
        headers = {"cookie": f"__Host-ich_oidc={cookie}".encode()}
        assert client.get("/login/oidc/callback?code=x&state=x", headers=headers).status_code == 403


def test_the_answer_names_the_provider(node: Node) -> None:
    """Mix-up of providers (RFC 9207)."""
    with node.client() as client:
        begun = client.get("/login/oidc")
        state = parse_qs(urlsplit(begun.headers["location"]).query)["state"][0]
        assert client.get(f"/login/oidc/callback?code=x&state={state}").status_code == 403


# a proxy, and the command


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def running_web(folder: Path, **environ: str) -> Iterator[int]:
    """`ich-node web` as a process."""
    port = free_port()
    variables = {
        **os.environ,
        "ICH_NODE_DATA_DIR": str(folder),
        "ICH_NODE_WEB__PORT": str(port),
        "ICH_NODE_READY_FOLDER": str(folder),
        **environ,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "ich_node", "web"], env=variables, stderr=subprocess.PIPE
    )
    try:
        ends_at = time.monotonic() + DEADLINE_S
        while not (folder / "web").exists():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < ends_at
            threading.Event().wait(0.05)
        yield port
    finally:
        process.terminate()
        _, said = process.communicate(timeout=DEADLINE_S)
        assert b"Traceback" not in said


def test_a_proxy_that_is_trusted_says_who_calls_and_that_it_came_by_https(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'ich-node.sqlite'}")
    database.upgrade()
    with database.writing() as session:
        token = create_token(
            session, name="t", role="machine", created_by="me", now=datetime.now(UTC), expires_at=None
        )
    settings = {
        "ICH_NODE_WEB__LOGIN__LOCAL_USERS": "true",
        "ICH_NODE_WEB__TRUSTED_HOSTS": '["node.example"]',
        "ICH_NODE_WEB__PROXY__ADDRESSES": '["127.0.0.2"]',
    }
    with running_web(tmp_path, **settings) as port:

        def ask(source: str, **headers: str) -> httpx.Response:
            sent = {"host": "node.example", **{k.replace("_", "-"): v for k, v in headers.items()}}
            with httpx.Client(transport=httpx.HTTPTransport(local_address=source)) as client:
                return client.get(f"http://127.0.0.1:{port}/metrics", headers=sent, timeout=DEADLINE_S)

        forwarded = {"x_forwarded_proto": "https", "x_forwarded_for": "192.0.2.77"}
        answer = ask("127.0.0.2", **forwarded)
        assert answer.status_code == 401
        assert answer.headers["strict-transport-security"]
        assert "server" not in answer.headers
        assert ask("127.0.0.3", **forwarded).status_code == 403  # nobody whom the settings name
        assert ask("127.0.0.2").status_code == 403  # it has not come by https
        assert ask("127.0.0.2", **forwarded, authorization=f"Bearer {token}").status_code == 200
        assert ask("127.0.0.2", **forwarded, authorization="Bearer x").status_code == 401
    with database.reading() as session:
        (row,) = session.scalars(select(AccessRow))
    assert row.source == "192.0.2.77"
    database.dispose()


def test_the_command_refuses_a_certificate_that_it_cannot_use(tmp_path: Path) -> None:
    (tmp_path / "web.pem").write_text("nothing")
    variables = {
        **os.environ,
        "ICH_NODE_DATA_DIR": str(tmp_path),
        "ICH_NODE_WEB__TLS__CERTIFICATE": str(tmp_path / "web.pem"),
        "ICH_NODE_WEB__TLS__KEY": str(tmp_path / "web.key"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "ich_node", "web"],
        env=variables,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2
    assert "web.tls.certificate" in done.stderr
    assert "holds no certificate in PEM form" in done.stderr


# a browser


@dataclass
class OtherSite:
    """A page elsewhere, with a link to ours and a form that it sends there."""

    target: str
    port: int = 0
    listening: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def __enter__(self) -> OtherSite:
        self.port = self.listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()

    def _serve(self) -> None:
        html = (
            f'<a id="link" href="{self.target}/studies/{STUDY}">a study</a>'
            f'<form method="post" action="{self.target}/logout"><button>log out</button></form>'
        ).encode()
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                with connection:
                    connection.recv(65536)
                    head = (
                        f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(html)}\r\n\r\n"
                    )
                    connection.sendall(head.encode() + html)


@pytest.fixture
def browser_page() -> Iterator[playwright.Page]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: apt install chromium")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context(ignore_https_errors=True, viewport={"width": 1366, "height": 768})
        page = context.new_page()
        page.set_default_timeout(DEADLINE_S * 1000)
        yield page
        browser.close()


def test_in_a_browser(node: Node, browser_page: playwright.Page) -> None:
    page = browser_page
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
    page.goto(f"{node.address}/studies/{STUDY}")
    page.get_by_label("Name").fill("anna")
    page.get_by_label("Password").fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("The name or the password is not right.").wait_for()
    page.get_by_label("Name").fill("anna")
    page.get_by_label("Password").fill(GOOD)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(f"{node.address}/studies/{STUDY}")
    page.get_by_text("Novak").first.wait_for()
    # A link from another site finds us logged in, and its form cannot log us out.
    with OtherSite(node.address) as other:
        page.goto(f"http://127.0.0.1:{other.port}/")
        page.locator("#link").click()
        page.wait_for_url(f"{node.address}/studies/{STUDY}")
        page.get_by_text("Novak").first.wait_for()
        page.goto(f"http://127.0.0.1:{other.port}/")
        page.get_by_role("button", name="log out").click()
        page.wait_for_url(f"{node.address}/logout")
    page.goto(f"{node.address}/")
    page.get_by_text("Novak").first.wait_for()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{node.address}/login")
    page.go_back()
    page.wait_for_load_state()
    assert "Novak" not in page.content()
    # The hospital's own login, all the way.
    page.goto(f"{node.address}/studies/{STUDY}")
    page.get_by_role("link", name="Log in with the hospital's account").click()
    page.wait_for_url(f"{node.address}/studies/{STUDY}")
    page.get_by_text("Novak").first.wait_for()
    assert complaints == []
