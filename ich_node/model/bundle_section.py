"""A section of ``bundle.json`` as a typed value: nothing unknown, of the wrong kind or out of range, no NaN."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ich_node.errors import ConfigurationError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Which numbers a field of a section takes; written as ``Annotated[float, Limits(...)]``."""

    least: float
    most: float = math.inf
    above: bool = False
    """Whether ``least`` itself is too little."""

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most and not (self.above and number == self.least)

    def __str__(self) -> str:
        if self.most < math.inf:
            return f"{self.least:g} to {self.most:g}"
        return f"more than {self.least:g}" if self.above else f"{self.least:g} or more"


Count = Annotated[int, Limits(least=1)]
"""1 or more."""
Share = Annotated[float, Limits(least=0, most=1)]
"""0 to 1."""
Positive = Annotated[float, Limits(least=0, above=True)]
NotNegative = Annotated[float, Limits(least=0)]


class _Unfit(Exception):
    """What a value has to be, said in words."""


def typed_section(kind: type[T], values: Mapping[str, Any], file: Path, section: str) -> T:
    """Make a configuration from a section of a bundle's description, or of another file of such sections.

    Parameters
    ----------
    kind
        Frozen dataclass whose fields all have defaults and are ``bool``, ``int``, ``float``, ``str``, ``Literal``,
        `StrEnum`, a number with `Limits`, tuples of these, or one of these or ``None``; or another such dataclass.
    values
        The section as JSON gave it.
    file, section
        Where the section is: for the messages.

    Returns
    -------
    T
        Integers given for floats are floats in it, lists are tuples.

    Raises
    ------
    ConfigurationError
        A key is unknown, or a value is of the wrong kind, not finite, out of its field's limits, or none of those
        that its field knows; or the dataclass itself refuses what it was given. The message names file and key. A
        boolean is no number.
    """
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{file}: key {section!r} has to be an object")
    hints = get_type_hints(kind, include_extras=True)
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    given = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigurationError(f"{file}: key '{section}.{key}' is not known to this version")
        if is_dataclass(hints[key]):
            given[key] = typed_section(hints[key], value, file, f"{section}.{key}")
            continue
        try:
            given[key] = _fitted(hints[key], value)
        except _Unfit as unfit:
            raise ConfigurationError(
                f"{file}: key '{section}.{key}' has a value that does not fit: {value!r} ({unfit})"
            ) from None
    try:
        return kind(**given)
    except Exception as error:  # its own checks, whatever they raise
        raise ConfigurationError(f"{file}: key {section!r}: {error}") from error


def _fitted(annotation: Any, value: Any) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        number, limits = get_args(annotation)
        return _limited(number, limits, value)
    if origin is tuple:
        return _tuple(get_args(annotation), value)
    if origin is Literal:
        return _literal(get_args(annotation), value)
    if origin in (Union, types.UnionType):
        return _optional(get_args(annotation), value)
    if annotation is float:
        return _float(value)
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return annotation(_literal(tuple(member.value for member in annotation), value))
    if annotation not in (bool, int, str):
        raise TypeError(f"a bundle's section cannot hold {annotation}")
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        names = {bool: "true or false", int: "a whole number", str: "text"}
        raise _Unfit(f"it has to be {names[annotation]}")
    return value


def _limited(annotation: Any, limits: Limits, value: Any) -> Any:
    number = _fitted(annotation, value)
    if number not in limits:
        raise _Unfit(f"it has to be {limits}")
    return number


def _float(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # of an integer
            number = math.inf
        if math.isfinite(number):
            return number
    raise _Unfit("it has to be a finite number")


def _literal(allowed: tuple[Any, ...], value: Any) -> Any:
    # True == 1 and 1.0 == 1, so the kind is compared as well
    for each in allowed:
        if type(value) is type(each) and value == each:
            return each
    raise _Unfit("it has to be one of " + ", ".join(repr(each) for each in allowed))


def _optional(kinds: tuple[Any, ...], value: Any) -> Any:
    others = [kind for kind in kinds if kind is not types.NoneType]
    if len(others) != 1 or len(others) == len(kinds):
        raise TypeError(f"a bundle's section cannot hold a choice of {kinds}")
    return None if value is None else _fitted(others[0], value)


def _tuple(kinds: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise _Unfit("it has to be a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(_fitted(kinds[0], each) for each in value)
    if len(value) != len(kinds):
        raise _Unfit(f"a list has {len(value)} values, not {len(kinds)}")
    return tuple(_fitted(each_kind, each) for each_kind, each in zip(kinds, value, strict=True))
