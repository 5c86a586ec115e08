"""The settings as people and editors see them: TOML, the sample file, the JSON Schema, and the table of the README."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic.fields import FieldInfo

from proxy.settings.layers import DEFAULT_CONFIG, environment_name, flag_name, toml_key
from proxy.settings.model import GROUPS, RouteSettings, Settings
from proxy.settings.wording import summary, unit_of

__all__ = ["default_text", "dump_toml", "example_toml", "json_schema", "markdown_tables", "toml_value"]

_COLUMNS: Final = 100

_PREAMBLE: Final = f"""\
#:schema ./routes.schema.json

# Sample settings of cloudrun-sidecar: every setting with its reason, unit and default. Copy it to {DEFAULT_CONFIG},
# where it is found without being named, or name it with --config or CLOUDRUN_SIDECAR_CONFIG.
#
# Every setting of the sidecar is also a flag and an environment variable, here for example drain_timeout:
# {flag_name("drain_timeout")} and {environment_name("drain_timeout")}. Flags win over the environment, and that over
# this file. `cloudrun-sidecar serve --print-config` shows what comes out, and where it came from.
"""

_ROUTES: Final = """\
# Restate reaches this route as http://127.0.0.1:9081/greeter:
#   restate deployments register http://127.0.0.1:9081/greeter
"""


def dump_toml(settings: Settings, places: Mapping[tuple[str, ...], str] | None = None) -> str:
    """Return the settings as a TOML file that gives them back, each with a comment that says where it came from.

    `places` is that of `load_traced`; without it there are no comments. What is not set stands as a comment.
    """
    lines: list[str] = []
    for heading, names in GROUPS.items():
        lines += ["", f"# {heading}"]
        for name in names:
            source = "" if places is None else f"  # {places.get((name,), 'default')}"
            lines.append(_assignment(name, getattr(settings, name)) + source)
    for name, route in settings.routes.items():
        source = "" if places is None else f"  # {places.get(('routes', name), '')}"
        lines += ["", f"[{toml_key('routes', name)}]{source}"]
        lines += [_assignment(key, getattr(route, key)) for key in RouteSettings.model_fields]
        if route.gcp_audience is None and route.gcp_id_token:
            lines.append(f"# the audience is {route.route(name).audience}")
    return "\n".join(lines[1:]) + "\n"


def example_toml() -> str:
    """Return the sample file `config/routes.example.toml`, made of the model."""
    parts = [_PREAMBLE]
    for heading, names in GROUPS.items():
        parts.append(f"# ---- {heading} {'-' * (_COLUMNS - len(heading) - 8)}\n")
        parts += ["\n".join(_explained(name, Settings.model_fields[name])) + "\n" for name in names]
    parts.append(f"# ---- Routes {'-' * (_COLUMNS - 14)}\n")
    parts.append("\n".join(_comment(Settings.model_fields["routes"].description or "")) + "\n")
    parts.append(_ROUTES.rstrip("\n"))
    parts.append("[routes.greeter]")
    for name, info in RouteSettings.model_fields.items():
        parts.append("\n".join(_explained(name, info)) + "\n")
    return "\n".join(parts).rstrip("\n") + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a settings file, `config/routes.schema.json`."""
    schema = Settings.model_json_schema()
    for model in (schema, schema["$defs"]["RouteSettings"]):
        for name, entry in model["properties"].items():
            model["properties"][name] = _plain(entry)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "cloudrun-sidecar settings",
        "description": "What `cloudrun-sidecar serve --config FILE` reads. Routes may also be given by flag.",
    }


def markdown_tables() -> str:
    """Return the settings of the sidecar and those of a route, each a table in Markdown, as the README has them."""
    sidecar = [(name, Settings.model_fields[name]) for names in GROUPS.values() for name in names]
    return "\n".join([*_rows("setting", sidecar), "", *_rows("of a route", list(RouteSettings.model_fields.items()))])


def _rows(head: str, fields: list[tuple[str, FieldInfo]]) -> Iterator[str]:
    yield f"| {head} | default | |"
    yield "|---|---|---|"
    for name, info in fields:
        default = "required" if info.is_required() else default_text(info)
        unit = " seconds" if unit_of(info) == "seconds" else ""
        shown = default if default in ("required", "not set") else f"`{default}`{unit}"
        yield f"| `{name}` | {shown} | {summary(info)}. |"


def toml_value(value: Any) -> str:
    """Return a boolean, number, text, path or sequence of these as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    # JSON's escapes are TOML's, but JSON lets DEL through.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _assignment(name: str, value: Any) -> str:
    return f"#{name} =" if value is None else f"{name} = {toml_value(value)}"


def _explained(name: str, info: FieldInfo) -> Iterator[str]:
    yield from _comment(info.description or "")
    example = toml_value(_tuple(info.examples[0] if info.examples else info.default))
    if info.is_required():
        yield "# Required."
        yield f"{name} = {example}"
        return
    unit = f"Unit: {unit_of(info)}. " if unit_of(info) else ""
    yield f"# {unit}Default: {default_text(info)}."
    yield f"#{name} = {example}"


def default_text(info: FieldInfo) -> str:
    """Return the default of a setting in words: `30`, `1048576 (1 MiB)`, `not set`."""
    if info.default is None or info.default == ():
        return "not set"
    text = toml_value(info.default)
    if unit_of(info) != "octets":
        return text
    mebi, kibi = info.default >> 20, info.default >> 10
    return f"{text} ({mebi} MiB)" if mebi else f"{text} ({kibi} KiB)"


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop made-up titles, and null, which TOML does not know."""
    entry = {key: value for key, value in entry.items() if key != "title"}
    if "anyOf" in entry:
        entry |= next(option for option in entry.pop("anyOf") if option["type"] != "null")
        del entry["default"]
    return entry
