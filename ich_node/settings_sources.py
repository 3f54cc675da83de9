"""Where settings come from: defaults, then a TOML file, then ``ICH_NODE_<SECTION>__<KEY>`` environment variables."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ich_node.errors import ConfigurationError
from ich_node.settings import Settings
from ich_node.settings_section import Section

ENVIRONMENT_PREFIX = "ICH_NODE_"
CONFIG_VARIABLE = "ICH_NODE_CONFIG"


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


def _rows(section: Section, sources: Mapping[str, str], prefix: str) -> list[SettingRow]:
    rows: list[SettingRow] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        key = f"{prefix}{name}"
        if isinstance(value, Section):
            rows += _rows(value, sources, f"{key}.")
            continue
        if value and isinstance(value, tuple) and isinstance(value[0], Section):
            value = [item.model_dump(mode="json") for item in value]
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        rows.append(
            SettingRow(
                key=key,
                value=_shown(name, value),
                source=_source(key, sources) if isinstance(value, dict) else sources.get(key, "default"),
                unit=str(extra.get("unit", "")),
                description=field.description or "",
            )
        )
    return rows
