"""pydantic's errors as sentences: which setting, what is wrong, what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from proxy.quoting import plain, quoted
from proxy.settings.field_texts import number_text, summary, unit_of
from proxy.settings.layers import did_you_mean
from proxy.settings.model import DeploymentSettings, RouteSettings, Settings

__all__ = ["DEPLOYMENTS_IS_TABLE", "ROUTE_IS_TABLE", "describe"]

ROUTE_IS_TABLE: Final = 'must be a table: write [routes.NAME] and below it url = "https://…"'
"""What is wrong with a route, or with `routes`, of another type."""

DEPLOYMENTS_IS_TABLE: Final = 'must be a table: write [deployments] and below it hosts = ["…run.app"]'
"""What is wrong with `deployments` of another type."""

_ONE_BY_ONE: Final = "; the values of a list are given one by one, in a variable with blanks between"

_EXPECTED: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "bool_type": lambda _: "true or false",
    "int_type": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "string_type": lambda _: "text in quotes",
    "string_unicode": lambda _: "UTF-8 text",
    "path_type": lambda _: "text in quotes that names a file",
    "tuple_type": lambda _: "a list of texts",
    "literal_error": lambda context: f"one of {context['expected'].replace(chr(39), '')}",
    "greater_than": lambda context: f"more than {number_text(context['gt'])}",
    "greater_than_equal": lambda context: f"at least {number_text(context['ge'])}",
    "less_than_equal": lambda context: f"at most {number_text(context['le'])}",
}


def describe(error: ErrorDetails) -> tuple[tuple[str, ...], str]:
    """Return the keys of the setting that is wrong, and what is wrong with it.

    For an element of a list (`listen.0`) the keys are those of the list.
    """
    keys = tuple(str(part) for part in error["loc"] if isinstance(part, str) and part != "[key]")
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "combination":
        return (*keys[:-1], context["at"]), context["what"]
    if kind == "value_error":
        return keys, f"{context['error']}{_ONE_BY_ONE if _has_commas(error) else ''}"
    if kind == "extra_forbidden":
        return keys, _unknown(keys, error["input"])
    info = _field(keys)
    if kind == "missing" and info is not None:
        return keys, f"is missing: {summary(info)}"
    if keys == ("routes",) or info is None:
        return keys, ROUTE_IS_TABLE
    expected = _EXPECTED.get(kind)
    what = expected(context) if expected else error["msg"]
    return keys, f"must be {what}, not {quoted(error['input'])}{_unit_and_default(info)}"


def _has_commas(error: ErrorDetails) -> bool:
    """Return whether a list, or the element of a list that is wrong, has text with a comma in it."""
    given = error["input"]
    listed = given if isinstance(given, tuple) else (given,) if isinstance(error["loc"][-1], int) else ()
    return any(isinstance(one, str) and "," in one for one in listed)


def _field(keys: tuple[str, ...]) -> FieldInfo | None:
    """Return the setting at `keys`; None for a table."""
    if keys[0] == "deployments":
        return DeploymentSettings.model_fields.get(keys[1])
    if keys[:1] != ("routes",):
        return Settings.model_fields.get(keys[0])
    return RouteSettings.model_fields.get(keys[2]) if len(keys) > 2 else None


def _unknown(keys: tuple[str, ...], value: object) -> str:
    within: type[BaseModel] = Settings
    if len(keys) > 1:
        within = DeploymentSettings if keys[0] == "deployments" else RouteSettings
    word = keys[-1]
    if within is not Settings and word.replace("-", "_") in Settings.model_fields:
        what, table = ("a route", "[routes.…]") if within is RouteSettings else ("[deployments]", "[deployments]")
        return f"is a setting of the sidecar, not of {what}; put it above the first {table}"
    if within is Settings and word in ("upstream", "route"):
        return (
            'is a flag, and no setting of a file: write [routes.NAME], or [routes.""] for all paths, and below it url'
        )
    if within is RouteSettings and isinstance(value, Mapping):
        return f"is no setting of a route; a name with a dot or a slash is quoted: [routes.{_quoted_name(keys[1:])}]"
    hint = did_you_mean(word.replace("-", "_"), within.model_fields)
    if within is Settings and not hint and word in RouteSettings.model_fields:
        hint = "; it belongs to a route, below [routes.NAME]"
    elif within is Settings and not hint and word in DeploymentSettings.model_fields:
        hint = "; it belongs below [deployments]"
    return f"is not a setting{hint}"


def _quoted_name(keys: tuple[str, ...]) -> str:
    return '"{}"'.format(".".join(keys) if all(plain(key) is not None for key in keys) else "…")


def _unit_and_default(info: FieldInfo) -> str:
    parts = [part for part in (unit_of(info), f"default {number_text(info.default)}") if part]
    return f" ({', '.join(parts)})" if isinstance(info.default, int | float) else ""
