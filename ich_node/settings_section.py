"""What a section of the settings is made of: fields with default, bounds, unit and meaning."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


def setting(default: Any, description: str, unit: str = "", **bounds: Any) -> Any:
    """A field with what the command line and the docs say of it."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **bounds)


class Section(BaseModel):
    """Settings that belong together: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _a_truth_value_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("a number is expected, not true or false")
        return value


def check_ae_title(value: str) -> str:
    """A title without the spaces around it.

    Raises
    ------
    ValueError
        It is none (PS3.5 6.2).
    """
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not title.isascii() or not title.isprintable():
        raise ValueError("an AE title has 1 to 16 printable ASCII characters without backslash (PS3.5 6.2)")
    return title
