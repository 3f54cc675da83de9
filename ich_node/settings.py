"""Settings: defaults, then a TOML file, then ``ICH_NODE_<SECTION>__<KEY>`` environment variables."""

from __future__ import annotations

import ipaddress
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ich_node.errors import ConfigurationError

ENVIRONMENT_PREFIX = "ICH_NODE_"
CONFIG_VARIABLE = "ICH_NODE_CONFIG"
SQLITE_FILE = "ich-node.sqlite"
"""In data_dir, where database.url names nothing else."""


def _setting(default: Any, description: str, unit: str = "", **bounds: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"unit": unit}, **bounds)


def is_loopback(host: str) -> bool:
    """Whether only callers on this machine can reach a server bound to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _a_truth_value_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("a number is expected, not true or false")
        return value


def _check_ae_title(value: str) -> str:
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not title.isascii() or not title.isprintable():
        raise ValueError("an AE title has 1 to 16 printable ASCII characters without backslash (PS3.5 6.2)")
    return title


class ReceiverSettings(_Section):
    """The C-STORE and C-ECHO server."""

    host: str = _setting("127.0.0.1", "address that the DICOM server listens on", min_length=1)
    port: int = _setting(11112, "TCP port of the DICOM server", ge=0, le=65535)
    ae_title: str = _setting("ICH_NODE", "AE title that callers must name")
    allow_any_peer: bool = _setting(
        False, "accept callers that are not listed under [[peers]] on a public address"
    )
    max_associations: int = _setting(20, "associations open at once", ge=1, le=500)
    settle_seconds: float = _setting(
        1.0, "wait after an association has ended with a gapless series", "s", ge=0, le=60
    )
    quiet_seconds: float = _setting(
        10.0, "wait after an association has ended with a series that has gaps", "s", ge=0, le=600
    )
    stalled_seconds: float = _setting(
        60.0, "wait for the next image while an association is still open", "s", ge=1, le=3600
    )

    _ae_title = field_validator("ae_title")(_check_ae_title)


class WebSettings(_Section):
    """The worklist page."""

    host: str = _setting(
        "127.0.0.1", "address that the web server listens on; loopback only, it has no login yet"
    )
    port: int = _setting(8080, "TCP port of the web server", ge=0, le=65535)

    @field_validator("host")
    @classmethod
    def _loopback_only(cls, value: str) -> str:
        if not is_loopback(value):
            raise ValueError("the worklist page has no login yet and is served on a loopback address only")
        return value


class DatabaseSettings(_Section):
    """Where the truth lives."""

    url: str = _setting("", "SQLAlchemy URL; empty: SQLite in data_dir")


class BrokerSettings(_Section):
    """What carries task messages; losing all of them loses nothing."""

    url: str = _setting(
        "", "Celery broker URL; empty: an embedded server in data_dir; filesystem://: files there"
    )


class WorkerSettings(_Section):
    """The processes that read studies."""

    processes: int = _setting(1, "studies read at once on this host; 0: none", ge=0, le=64)
    lease_seconds: float = _setting(
        15.0, "a worker that has not shown life for so long has lost its study", "s", ge=2, le=600
    )
    max_attempts: int = _setting(3, "times a study may take its worker down before it is FAILED", ge=1, le=20)


class ModelSettings(_Section):
    """Which published system reads."""

    bundles: tuple[str, ...] = _setting(
        ("vicar-attention-v1",), "model bundles by name; one for now", min_length=1
    )
    device: str = _setting("auto", "torch device: auto, cpu or cuda:N", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    engine: Literal["torch"] = _setting("torch", "inference engine")

    @field_validator("bundles")
    @classmethod
    def _one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) != 1:
            raise ValueError("exactly one bundle can read at present")
        return value


class PeerSettings(_Section):
    """Who may send: both AE title and host must match."""

    name: str = _setting(..., "a name for people")
    ae_title: str = _setting(..., "calling AE title")
    host: str = _setting(..., "IP address that the peer calls from")

    _ae_title = field_validator("ae_title")(_check_ae_title)

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        return str(ipaddress.ip_address(value))


class PacsSettings(_Section):
    """Where results go."""

    name: str = _setting(..., "a name for people; unique", min_length=1)
    ae_title: str = _setting(..., "called AE title")
    host: str = _setting(..., "host name or IP address", min_length=1)
    port: int = _setting(..., "TCP port", ge=1, le=65535)

    _ae_title = field_validator("ae_title")(_check_ae_title)


class Settings(_Section):
    """Everything that an installation can choose."""

    data_dir: Path = _setting(Path("ich-node-data"), "folder that holds all state")
    receiver: ReceiverSettings = ReceiverSettings()
    web: WebSettings = WebSettings()
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    worker: WorkerSettings = WorkerSettings()
    model: ModelSettings = ModelSettings()
    peers: tuple[PeerSettings, ...] = _setting((), "scanners and PACS that may send; empty: any local caller")
    pacs: tuple[PacsSettings, ...] = _setting((), "PACS that results are sent to")

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            return value.expanduser().resolve()
        except RuntimeError as error:
            raise ValueError(f"{value} cannot be expanded: {error}") from None

    @field_validator("data_dir", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if value == "":
            raise ValueError("an empty name would put all state into the current folder; write . for that")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        # An error's text begins with the key that it is about.
        if not self.peers and not self.receiver.allow_any_peer and not is_loopback(self.receiver.host):
            raise ValueError(
                f"receiver.host: {self.receiver.host} lets any host call: list the callers under [[peers]], "
                "or set receiver.allow_any_peer = true"
            )
        names = [pacs.name for pacs in self.pacs]
        if len(set(names)) != len(names):
            raise ValueError("pacs: two [[pacs]] have the same name")
        return self

    @property
    def database_url(self) -> str:
        """The database's SQLAlchemy URL with the default filled in."""
        return self.database.url or f"sqlite:///{quote(str(self.data_dir / SQLITE_FILE))}"

    @property
    def spool_dir(self) -> Path:
        """Received objects."""
        return self.data_dir / "spool"

    @property
    def bundles_dir(self) -> Path:
        """Model bundles installed here, beside those that the package ships."""
        return self.data_dir / "models"

    @property
    def results_dir(self) -> Path:
        """Structured reports and secondary captures made here."""
        return self.data_dir / "results"


@dataclass(frozen=True, kw_only=True)
class SettingRow:
    """One line of ``ich-node config show``."""

    key: str
    value: Any
    source: str
    unit: str
    description: str


@dataclass(frozen=True, kw_only=True)
class LoadedSettings:
    """Settings with the place that each value came from."""

    settings: Settings
    sources: Mapping[str, str]

    def rows(self) -> list[SettingRow]:
        """Each setting with value, source, unit and description."""
        return list(_rows(self.settings, self.sources, ""))


def load_settings(config: Path | None, environ: Mapping[str, str]) -> LoadedSettings:
    """Read the settings.

    Parameters
    ----------
    config
        TOML file; ``None`` takes ``ICH_NODE_CONFIG`` from ``environ``, or defaults alone.
    environ
        Environment variables.

    Raises
    ------
    ConfigurationError
        A file that cannot be read, an unknown key, or a value that does not fit; names key and source.
    """
    path = config or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    values: dict[str, Any] = _read_toml(path) if path else {}
    sources = {key: str(path) for key in _keys(values)}
    for key, value, variable in _from_environment(environ):
        _put(values, key, value, variable)
        sources[key] = variable
    try:
        return LoadedSettings(settings=Settings.model_validate(values), sources=sources)
    except ValidationError as error:
        raise ConfigurationError("\n".join(_explain(error, sources))) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read the settings file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the settings file {path} is not valid TOML: {error}") from None


def _keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += _keys(value, f"{name}.") if isinstance(value, dict) else [name]
    return found


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    for variable, text in sorted(environ.items()):
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not variable.startswith(ENVIRONMENT_PREFIX):
            continue
        if "" in name.split("__"):
            raise ConfigurationError(f"{variable} names no setting: a section or a key is empty")
        if "__" in name or name in Settings.model_fields:
            found += [(*item, variable) for item in _flat(name.replace("__", "."), _parsed(variable, text))]
        elif meant := _with_one_underscore_too_few(name):
            raise ConfigurationError(
                f"{variable} is not a setting; it is {ENVIRONMENT_PREFIX}{meant.upper()}"
            )
    return found


def _parsed(variable: str, text: str) -> Any:
    if not text.startswith(("[", "{")):  # lists and tables are given as JSON
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{variable} is not valid JSON: {error}") from None


def _flat(key: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(key, value)]
    return [item for name, inner in value.items() for item in _flat(f"{key}.{name}", inner)]


def _with_one_underscore_too_few(name: str) -> str | None:
    for section, field in Settings.model_fields.items():
        key = name.removeprefix(f"{section}_")
        keys = getattr(field.annotation, "model_fields", ())
        if key != name and key in keys:
            return f"{section}__{key}"
    return None


def _put(values: dict[str, Any], key: str, value: Any, variable: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"{variable} sets {key}, but {section} is not a section")
    values[last] = value


def _explain(error: ValidationError, sources: Mapping[str, str]) -> list[str]:
    lines = []
    for item in error.errors():
        key, message = ".".join(str(part) for part in item["loc"]), item["msg"].removeprefix("Value error, ")
        if not key:
            key, _, message = message.partition(": ")
        if item["type"] == "extra_forbidden":
            message = "unknown setting"
        elif item["type"] == "tuple_type":
            message = "a list is expected; in the environment it is written as JSON"
        lines.append(f"{_source(key, sources)}: {key}: {message}")
    return lines


def _source(key: str, sources: Mapping[str, str]) -> str:
    """Where a key was set; for a list or a section, where something in it or around it was."""
    related = [n for n in sources if f"{key}.".startswith(f"{n}.") or n.startswith(f"{key}.")]
    return sources[max(related, key=len)] if related else "default"


def _shown(name: str, value: Any) -> Any:
    """A value as it may be printed: without the password of a URL."""
    if name == "url":
        value = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", str(value))
        return re.sub(r"([?&]password=)[^&]*", r"\1***", value)
    return str(value) if isinstance(value, Path) else value


def _rows(section: _Section, sources: Mapping[str, str], prefix: str) -> list[SettingRow]:
    rows: list[SettingRow] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        key = f"{prefix}{name}"
        if isinstance(value, _Section):
            rows += _rows(value, sources, f"{key}.")
            continue
        if value and isinstance(value, tuple) and isinstance(value[0], _Section):
            value = [item.model_dump(mode="json") for item in value]
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        rows.append(
            SettingRow(
                key=key,
                value=_shown(name, value),
                source=sources.get(key, "default"),
                unit=str(extra.get("unit", "")),
                description=field.description or "",
            )
        )
    return rows
