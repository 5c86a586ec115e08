"""Generates TOML of the effective settings, the sample file, the JSON Schema and the tables of the settings page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import tomlkit
from pydantic.fields import FieldInfo

from proxy.network.http_proxy import parse_http_proxy
from proxy.settings.field_texts import NOT_SET, default_text, summary, unit_of
from proxy.settings.groups import GROUPS
from proxy.settings.layers import DEFAULT_CONFIG, environment_name, flag_name
from proxy.settings.model import DeploymentSettings, RouteSettings, Settings

__all__ = ["dump_toml", "example_toml", "json_schema", "markdown_tables", "toml_value"]

_COLUMNS: Final = 100

_PREAMBLE: Final = f"""\
#:schema ./routes.schema.json

# Sample settings of cloudrun-sidecar: every setting with its reason, unit and default. Copy it to {DEFAULT_CONFIG},
# where it is found without being named, or name it with --config or CLOUDRUN_SIDECAR_CONFIG.
#
# Every setting of the sidecar is also a flag and an environment variable, here for example drain_timeout:
# {flag_name("drain_timeout")} and {environment_name("drain_timeout")}. Flags win over the environment, and that over
# this file. `cloudrun-sidecar serve --print-config` shows the values in effect, and where each comes from.
"""

_ROUTES: Final = """\
# Restate reaches this route as http://127.0.0.1:9081/greeter. To check and register it:
#   cloudrun-sidecar register greeter
"""

_DEPLOYMENTS: Final = """\
# Each is also a flag and a variable: --deployments-hosts, CLOUDRUN_SIDECAR_DEPLOYMENTS_HOSTS. With a host in the list:
#   cloudrun-sidecar register https://greeter-123456789012.europe-west1.run.app \\
#     --gcp-impersonate-service-account restate-invoker@my-project.iam.gserviceaccount.com
# Restate's own CLI does the same with http://127.0.0.1:9081/greeter-123456789012.europe-west1.run.app and the headers
# (--extra-header) x-cloudrun-sidecar-gcp-impersonate-service-account, -gcp-audience, -gcp-delegates (E-MAIL,E-MAIL) and
# -gcp-id-token (false: no token is added).
"""


def dump_toml(settings: Settings, places: Mapping[tuple[str, ...], str]) -> str:
    """Return the settings as TOML that can be loaded again, each with its origin (`Loaded.places`) as a comment.

    A setting without a value is a comment. The login of a proxy is left out.
    """

    def origin(*keys: str) -> str:
        return f"  # {places.get(keys, 'default')}"

    lines: list[str] = []
    for heading, names in GROUPS.items():
        lines += ["", f"# {heading}"]
        for name in names:
            lines.append(_assignment(name, _without_login(name, getattr(settings, name))) + origin(name))
    lines += ["", "[deployments]"]
    for name in DeploymentSettings.model_fields:
        lines.append(_assignment(name, getattr(settings.deployments, name)) + origin("deployments", name))
    for name, route in settings.routes.items():
        lines += ["", f"[{tomlkit.key(['routes', name]).as_string()}]{origin('routes', name)}"]
        lines += [_assignment(key, getattr(route, key)) for key in RouteSettings.model_fields]
        if route.gcp_audience is None and route.gcp_id_token:
            lines.append(f"# the audience is {route.route(name).audience}")
    return "\n".join(lines[1:]) + "\n"


def example_toml() -> str:
    """Return the sample file, `config/routes.example.toml`."""
    parts = [_PREAMBLE]
    for heading, names in GROUPS.items():
        parts += [_heading(heading), *(_explained(name, Settings.model_fields[name]) for name in names)]
    for heading, more, table, model in (
        ("Deployments", _DEPLOYMENTS, "[deployments]", DeploymentSettings),
        ("Routes", _ROUTES, "[routes.greeter]", RouteSettings),
    ):
        description = _comment(Settings.model_fields[heading.lower()].description or "")
        parts += [_heading(heading), f"{description}\n", f"{more}{table}"]
        parts += [_explained(name, info) for name, info in model.model_fields.items()]
    return "\n".join(parts).rstrip("\n") + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a settings file, `config/routes.schema.json`."""
    schema = Settings.model_json_schema()
    for model in (schema, schema["$defs"]["RouteSettings"], schema["$defs"]["DeploymentSettings"]):
        for name, entry in model["properties"].items():
            model["properties"][name] = _plain(entry)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "cloudrun-sidecar settings",
        "description": "What `cloudrun-sidecar serve --config FILE` reads. Routes may also be given by flag.",
    }


def markdown_tables() -> str:
    """Return the tables of docs/configuration.md: the settings of the sidecar, of a route, and of open routes."""
    sidecar = [(name, Settings.model_fields[name]) for names in GROUPS.values() for name in names]
    tables = [
        ("setting", sidecar),
        ("of a route", list(RouteSettings.model_fields.items())),
        ("in `[deployments]`", list(DeploymentSettings.model_fields.items())),
    ]
    return "\n\n".join("\n".join(_rows(head, fields)) for head, fields in tables)


def _rows(head: str, fields: list[tuple[str, FieldInfo]]) -> Iterator[str]:
    yield f"| {head} | default | |"
    yield "|---|---|---|"
    for name, info in fields:
        default = "required" if info.is_required() else _default(info)
        unit = " seconds" if unit_of(info) == "seconds" else ""
        shown = default if default in ("required", NOT_SET) else f"`{default}`{unit}"
        yield f"| `{name}` | {shown} | {summary(info)}. |"


def toml_value(value: Any) -> str:
    """Return a boolean, number, text, path or sequence of these as TOML, on one line; 30.0 is written `30`."""
    text: str = tomlkit.item(_item(value)).as_string()
    return text


def _item(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_item(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return str(value) if isinstance(value, Path) else value


def _without_login(name: str, value: Any) -> Any:
    """Return the value of a setting, without the login that the URL of a proxy may have."""
    return parse_http_proxy(value).url() if name == "upstream_proxy" and value is not None else value


def _assignment(name: str, value: Any) -> str:
    return f"#{name} =" if value is None else f"{name} = {toml_value(value)}"


def _heading(text: str) -> str:
    return f"# ---- {text} ".ljust(_COLUMNS, "-") + "\n"


def _explained(name: str, info: FieldInfo) -> str:
    """Return a setting with its description, unit, default and an example, and an empty line."""
    description = _comment(info.description or "")
    example = toml_value(info.examples[0] if info.examples else info.default)
    if info.is_required():
        return f"{description}\n# Required.\n{name} = {example}\n"
    unit = f"Unit: {unit_of(info)}. " if unit_of(info) else ""
    return f"{description}\n# {unit}Default: {_default(info)}.\n#{name} = {example}\n"


def _default(info: FieldInfo) -> str:
    """Return the default of a setting as TOML, octets also in MiB or KiB; `not set` if there is none."""
    text = default_text(info)
    return text if text == NOT_SET or not isinstance(info.default, str | tuple) else toml_value(info.default)


def _comment(text: str) -> str:
    return textwrap.fill(text, _COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """Remove generated titles, and null, which TOML does not have."""
    entry = {key: value for key, value in entry.items() if key != "title"}
    if "anyOf" in entry:
        entry |= next(option for option in entry.pop("anyOf") if option["type"] != "null")
        del entry["default"]
    return entry
