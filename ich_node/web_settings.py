"""The web service: where it listens, under which names it is reached, who may log in, and who is told of it."""

from __future__ import annotations

import ipaddress
import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from ich_node.settings_section import Section, setting

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]*[a-z0-9])?)*")


def is_loopback(host: str) -> bool:
    """Whether only callers on this machine can reach a server bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LoginSettings(Section):
    """People who log in by name and password, and how long anybody stays logged in."""

    local_users: bool = setting(False, "people log in by name and password ('ich-node users' manages them)")
    idle_minutes: int = setting(
        30,
        "a session ends after so long without a request; an open worklist asks by itself",
        "min",
        ge=1,
        le=1440,
    )
    absolute_hours: float = setting(12.0, "a session ends so long after its login", "h", gt=0, le=720)


class OidcRoles(Section):
    """Which values of the role claim give which role; the mightiest that fits counts."""

    viewer: tuple[str, ...] = setting((), "values that make a viewer")
    radiologist: tuple[str, ...] = setting((), "values that make a radiologist")
    admin: tuple[str, ...] = setting((), "values that make an administrator")


class OidcSettings(Section):
    """The hospital's own login, by OpenID Connect (authorization code flow with PKCE)."""

    issuer: str = setting("", "URL of the OpenID provider; empty: none")
    client_id: str = setting("", "name of this node there")
    client_secret_file: str = setting("", "file with this node's secret there; empty: a public client")
    scopes: tuple[str, ...] = setting(("openid", "profile"), "what is asked for")
    user_claim: str = setting(
        "preferred_username", "claim of the ID token that names the person", min_length=1
    )
    role_claim: str = setting(
        "groups", "claim of the ID token with groups or roles; dots lead into objects", min_length=1
    )
    roles: OidcRoles = OidcRoles()
    base_url: str = setting("", "how a browser reaches this node, for the way back: https://name:port")
    label: str = setting(
        "Log in with the hospital's account", "words of the link on the login page", min_length=1
    )
    ca: str = setting(
        "", "PEM file with the authorities that sign the provider's certificate; empty: those of the system"
    )

    @field_validator("issuer", "base_url")
    @classmethod
    def _secured(cls, value: str) -> str:
        return _check_https(value) if value else value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.issuer:
            return self
        if not self.client_id or not self.base_url:
            raise ValueError("issuer needs client_id and base_url")
        if "openid" not in self.scopes:
            raise ValueError('scopes must hold "openid"')
        if not any((self.roles.viewer, self.roles.radiologist, self.roles.admin)):
            raise ValueError(
                "nobody could log in: say in roles which groups are viewer, radiologist or admin"
            )
        return self


class WebTlsSettings(Section):
    """The web service by https (TLS 1.2 and 1.3)."""

    certificate: str = setting("", "PEM file with the certificate chain of the web service; empty: no TLS")
    key: str = setting("", "PEM file with the certificate's private key")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key are needed together")
        return self


class ProxySettings(Section):
    """A reverse proxy in front of the web service."""

    addresses: tuple[str, ...] = setting(
        (), "IP addresses or networks of it; X-Forwarded-For and X-Forwarded-Proto count from there only"
    )

    @field_validator("addresses")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            if ipaddress.ip_network(address).prefixlen == 0:
                raise ValueError(f"{address} is everybody: name the proxy's own address")
        return value


class AuditSettings(Section):
    """The site's audit repository, told of every access by DICOM audit messages (PS3.15 A.5, A.6)."""

    host: str = setting("", "host name or IP address of the repository; empty: none")
    port: int = setting(6514, "TCP port of syslog over TLS", ge=1, le=65535)
    ca: str = setting(
        "", "PEM file with the authorities that sign its certificate; empty: those of the system"
    )
    certificate: str = setting("", "PEM file with the certificate chain that it is shown; empty: none")
    key: str = setting("", "PEM file with the private key of that certificate")
    audit_source_id: str = setting("ICH_NODE", "how the repository knows this node", min_length=1)
    enterprise_site_id: str = setting("", "which site of the enterprise this is")

    @field_validator("host")
    @classmethod
    def _name(cls, value: str) -> str:
        return _check_name(value) if value else value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key are needed together")
        return self


class WebSettings(Section):
    """Pages, DICOMweb and the interface for scripts."""

    host: str = setting(
        "127.0.0.1",
        "address that the web server listens on; any but a loopback one needs https and a login",
        min_length=1,
    )
    port: int = setting(8080, "TCP port of the web server", ge=0, le=65535)
    trusted_hosts: tuple[str, ...] = setting((), "names under which it is reached, beside localhost")
    login: LoginSettings = LoginSettings()
    oidc: OidcSettings = OidcSettings()
    tls: WebTlsSettings = WebTlsSettings()
    proxy: ProxySettings = ProxySettings()
    audit: AuditSettings = AuditSettings()

    @field_validator("trusted_hosts")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_name(name) for name in value)

    def refuse_unsafe(self) -> None:
        """Refuse what would show names of patients to people who have no business with them.

        Raises
        ------
        ValueError
            The text begins with the key that it is about.
        """
        listens_to_all = not is_loopback(self.host)
        opened = {
            "host": listens_to_all,
            "trusted_hosts": self.trusted_hosts,
            "proxy.addresses": self.proxy.addresses,
        }
        key = next((key for key, is_set in opened.items() if is_set), "")
        if key and not self.login_required:
            raise ValueError(
                f"web.{key}: others reach the worklist page so, and without a login everybody is let in: set "
                "web.login.local_users = true, or web.oidc"
            )
        if listens_to_all and not self.tls.certificate and not self.proxy.addresses:
            raise ValueError(
                f"web.host: names of patients and passwords would cross the network readable from {self.host}: set "
                "web.tls.certificate and web.tls.key, or web.proxy.addresses of a proxy that speaks https"
            )
        if listens_to_all and not self.trusted_hosts:
            raise ValueError(
                "web.host: set web.trusted_hosts as well, to the names that stand in the worklist's address"
            )

    @property
    def login_required(self) -> bool:
        """Whether a caller must say who it is."""
        return self.login.local_users or bool(self.oidc.issuer)

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls.certificate else 'http'}://{host}:{self.port}/"


def _check_name(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    if _HOST_NAME.fullmatch(name.lower()) is None:
        raise ValueError(
            f"{name!r} is no host name: a name or an IP address without port and scheme is needed"
        )
    return name.lower()


def _check_https(value: str) -> str:
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"this is no URL: {error}") from None
    if not parts.hostname or port == 0 or parts.username or parts.query or parts.fragment:
        raise ValueError("a URL such as https://name:port is needed")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname)):
        raise ValueError("a URL that begins with https:// is needed (http:// on this machine only)")
    return value
