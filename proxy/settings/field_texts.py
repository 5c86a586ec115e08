"""The texts of a setting that `--help`, the sample file, the README and error sentences have in common."""

from __future__ import annotations

from typing import Any

from pydantic.fields import FieldInfo

__all__ = ["NOT_SET", "default_text", "number_text", "summary", "unit_of"]

NOT_SET = "not set"
"""What `default_text` returns for a setting without a default."""


def summary(info: FieldInfo) -> str:
    """Return the first sentence of a setting's description, without its full stop."""
    head, _, _ = (info.description or "").partition(". ")
    return head.rstrip(".")


def unit_of(info: FieldInfo) -> str:
    """Return `seconds`, `octets`, … or, for a setting without a unit, `""`."""
    extra = info.json_schema_extra
    return str(extra.get("x-unit", "")) if isinstance(extra, dict) else ""


def default_text(info: FieldInfo) -> str:
    """Return the default of a setting as a person writes it: `30`, `1048576 (1 MiB)`, `info`, `true`, `not set`."""
    default = info.default
    if default is None or default == ():
        return NOT_SET
    if isinstance(default, tuple):
        return " ".join(default)
    if unit_of(info) != "octets":
        return number_text(default)
    mebi, kibi = default >> 20, default >> 10
    return f"{default} ({mebi} MiB)" if mebi else f"{default} ({kibi} KiB)"


def number_text(value: Any) -> str:
    """Return a number, boolean or text as it is written in a settings file, but without quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
