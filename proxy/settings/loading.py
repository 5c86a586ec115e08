"""Merges settings file, environment and flags, and validates the result.

Flags win over the environment, and the environment over the file, setting by setting. Routes are merged by name: a
route that is given by flag or in the environment (an inline route) replaces the file's route of that name as a whole.

pydantic-settings (2.16) was tried for the layers and does not do what is needed here:

* the first layer that cannot be read (TOML with an error, a list in the environment) raises and hides all other
  problems; here all problems are reported at once;
* its errors do not say which layer a value came from, as `my.toml: routes.a.url` and `--workers` do;
* a variable with the prefix that names no setting is ignored without a word;
* tables are merged key by key, so an inline route would inherit the audience of the file's route of that name;
* lists in the environment are JSON, a named file that does not exist is skipped, and strict models refuse TOML's lists.

Each of these would be a source class of our own, so nothing of the library's would be left but its merge.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, get_origin

from pydantic import BaseModel, ValidationError

from proxy.quoting import holds_credential, plain, quoted
from proxy.settings.file_state import state_of_path
from proxy.settings.groups import TABLES
from proxy.settings.layers import (
    FileLayer,
    Place,
    Problem,
    SettingsInvalid,
    environment_name,
    flag_name,
    read_environment,
    read_file,
    tuples,
)
from proxy.settings.model import DeploymentSettings, RouteSettings, Settings
from proxy.settings.plain import PlainSettings
from proxy.settings.validation_errors import DEPLOYMENTS_IS_TABLE, ROUTE_IS_TABLE, describe

__all__ = ["DEPLOYMENT_OPTIONS", "INLINE_OPTIONS", "Loaded", "load"]

INLINE_OPTIONS: Final = tuple(name for name in RouteSettings.model_fields if name != "url")
"""Settings that apply to all inline routes together, by flag or in the environment."""

DEPLOYMENT_OPTIONS: Final = {f"deployments_{name}": name for name in DeploymentSettings.model_fields}
"""The key in `[deployments]` by the name that it has as a flag and in the environment."""

_PLAIN: Final = tuple(name for name in Settings.model_fields if name not in TABLES)
_KNOWN: Final = (*_PLAIN, *DEPLOYMENT_OPTIONS, *INLINE_OPTIONS, "route", "upstream")

_TRUTHS: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}

_Keys = tuple[str, ...]


class Loaded(NamedTuple):
    """The result of loading: settings and their origins."""

    settings: Settings
    """The validated settings."""
    places: Mapping[_Keys, str]
    """The origin of each value that is not a default, by key: `("workers",)`, `("routes", "greeter")`."""
    file: FileLayer
    """The settings file."""

    def plain(self) -> PlainSettings:
        """Return the settings as plain values, with the file that they were read from."""
        return self.settings.plain(config=self.file.path, config_state=self.file.state)


def load(config: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]) -> Loaded:
    """Return the effective settings and the origin of each value; SettingsInvalid with all problems there are.

    `config` is the path of the file; None means `$CLOUDRUN_SIDECAR_CONFIG`, else `config/routes.toml` if that exists.
    `flags` has values by setting, those of `[deployments]` as `deployments_hosts`. Besides, `route` is a sequence of
    `NAME=URL`, `upstream` is the URL of the route for all other paths, and the keys of RouteSettings except `url` apply
    to all inline routes. A flag that is None or empty was not given; text is parsed as in the environment.
    """
    draft = _Draft()
    file = read_file(config, environment)
    draft.problems += file.problems
    draft.lost_routes = bool(file.problems)
    _take_file(draft, file)
    variables, problems = read_environment(environment, _KNOWN)
    draft.problems += problems
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    for name in _PLAIN:
        for value, place in _given(name, variables, given, Settings, name):
            draft.put((name,), value, place)
    for option, name in DEPLOYMENT_OPTIONS.items():
        for value, place in _given(option, variables, given, DeploymentSettings, name):
            draft.put(("deployments", name), value, place)
    _take_inline_routes(draft, variables, given)
    _check_files(draft, file.directory)
    settings = draft.validated()
    return Loaded(settings, {keys: place.at() for keys, place in draft.places.items()}, file)


@dataclass
class _Draft:
    """The values so far, their origins, and the problems."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[_Keys, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    lost_routes: bool = False
    """True if routes were given that could not be read: the error "there is no route" would mislead."""

    def put(self, keys: _Keys, value: Any, place: Place) -> None:
        """Set the value at `keys` (a setting, or `routes` and a name); replaces a value of an earlier layer."""
        target = self.values
        for key in keys[:-1]:
            target = target.setdefault(key, {})
        target[keys[-1]] = value
        self.places[keys] = place

    def add_problem(self, keys: _Keys, what: str) -> None:
        """Add a problem at the origin of `keys`, or of the table around it."""
        self.problems.append(Problem(self._where(keys), what))

    def _where(self, keys: _Keys) -> str:
        for length in range(len(keys), 0, -1):
            place = self.places.get(keys[:length])
            if place is not None:
                return place.at(*keys[length:])
        return "settings"

    def validated(self) -> Settings:
        """Return the validated settings; SettingsInvalid if there is any problem."""
        settings = None
        try:
            settings = Settings.model_validate(self.values)
        except ValidationError as exc:
            for error in exc.errors(include_url=False):
                keys, what = describe(error)
                if not (self.lost_routes and keys == ("routes",)):
                    self.add_problem(keys, what)
        if self.problems or settings is None:
            # What all inline routes have together is wrong once, not once for each route.
            raise SettingsInvalid(dict.fromkeys(self.problems))
        return settings


def _take_file(draft: _Draft, file: FileLayer) -> None:
    for name, value in file.document.items():
        if name == "routes" and not isinstance(value, dict):
            draft.problems.append(Problem(Place(file.name, ("routes",)).at(), ROUTE_IS_TABLE))
            draft.lost_routes = True
        elif name == "routes":
            for route, table in value.items():
                draft.put(("routes", route), table, Place(file.name, ("routes", route)))
        elif name == "deployments" and isinstance(value, dict):
            for key, listed in value.items():
                draft.put((name, key), listed, Place(file.name, (name, key)))
        elif name == "deployments":
            draft.problems.append(Problem(Place(file.name, (name,)).at(), DEPLOYMENTS_IS_TABLE))
            draft.lost_routes = True
        else:
            draft.put((name,), value, Place(file.name, (name,)))


def _take_inline_routes(draft: _Draft, variables: Mapping[str, str], flags: Mapping[str, Any]) -> None:
    options: dict[str, tuple[Any, Place]] = {}
    for name in INLINE_OPTIONS:
        for value, place in _given(name, variables, flags, RouteSettings, name):
            options[name] = value, place
    from_variables = _inline(draft, _pairs(variables.get("route", "")), variables.get("upstream"), "environment: ")
    from_flags = _inline(draft, flags.get("route", ()), flags.get("upstream"), "")
    for name, (url, place) in {**from_variables, **from_flags}.items():
        draft.put(("routes", name), {"url": url, **{key: value for key, (value, _) in options.items()}}, place)
        for key, (_, option_place) in options.items():
            draft.places["routes", name, key] = option_place
    if not from_variables and not from_flags:
        for name, (_, place) in options.items():
            what = f"holds for routes given by --route or --upstream, and there is none; say {name} in [routes.NAME]"
            draft.problems.append(Problem(place.at(), what))


def _pairs(text: str) -> list[str]:
    """Split a list of NAME=URL at blanks; return text of another form unsplit."""
    words = text.split()
    listed = all("=" in word or plain(word) is not None for word in words)
    return words if listed else [text]


def _inline(draft: _Draft, routes: Iterable[str], upstream: str | None, layer: str) -> dict[str, tuple[str, Place]]:
    """Return URL and origin by route name; a wrong form and a repeated name are problems."""
    spelled = environment_name if layer else flag_name
    found: dict[str, tuple[str, Place]] = {}
    pairs = [(text, text.partition("="), f"{layer}{spelled('route')}") for text in routes]
    if upstream is not None:
        pairs.append((upstream, ("", "=", upstream), f"{layer}{spelled('upstream')}"))
    for text, (name, equals, url), place in pairs:
        if not equals or "://" in name:
            shown = "a URL alone" if "://" in text else quoted(text)
            what = f"must be NAME=URL, not {shown}; for one service without a name there is {spelled('upstream')}"
            draft.problems.append(Problem(place, what))
            draft.lost_routes = True
        elif name in found:
            draft.problems.append(
                Problem(place, f"gives the route {quoted(name)} a second time; each name can be given once")
            )
        else:
            shown = name if plain(name) is not None else "NAME"
            found[name] = (url, Place(f"{place} {shown}=…" if name else place))
    return found


def _check_files(draft: _Draft, directory: Path) -> None:
    """Check that the files and directories that settings name exist. Makes the paths of files absolute."""
    for name in ("upstream_ca", "tls_certificate", "tls_key", "tls_client_ca"):
        given = draft.values.get(name)
        if isinstance(given, str | Path):
            base = directory if draft.places[name,].keys else Path()
            path = Path(os.path.abspath(base / given))
            draft.values[name] = path
            if plain(given) is None and "\0" not in str(given) and not os.path.exists(path):
                draft.add_problem((name,), f"must be the path of a PEM file, and is {quoted(given)}")
            elif what := _file_problem(path, is_ca=name == "upstream_ca"):
                draft.add_problem((name,), what)
    addresses = [
        (name, text)
        for name in ("listen", "tls_listen")
        if isinstance(listed := draft.values.get(name), tuple)
        for text in listed
    ]
    addresses += [(name, draft.values.get(name)) for name in ("admin", "takeover_socket")]
    for name, text in addresses:
        # The model reports everything that is not a path.
        if isinstance(text, str) and text.startswith("unix:/") and plain(text) is not None:
            parent = Path(text.removeprefix("unix:")).parent
            if not parent.is_dir():
                draft.add_problem((name,), f"{text}: there is no directory {parent}; make it first")


def _file_problem(path: Path, *, is_ca: bool) -> str | None:
    """Return what is wrong with a PEM file; None if it can be used.

    Only that of a certificate authority is read: others are, by the process that serves.
    """
    try:
        if not is_ca:
            state_of_path(path)  # opens it, unless it is a pipe
            return f"{path} cannot be read: {os.strerror(errno.EISDIR)}" if path.is_dir() else None
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        return f"{path} has no PEM certificate; it must be that of the certificate authority"
    except OSError as exc:
        return f"{path} cannot be read: {exc.strerror}"
    except ValueError:
        return "a path cannot have a null character"
    return None


def _given(
    option: str, variables: Mapping[str, str], flags: Mapping[str, Any], model: type[BaseModel], name: str
) -> Iterator[tuple[Any, Place]]:
    """Yield value and origin of an option, from the environment and then as a flag; it is `name` in the model."""
    kind = model.model_fields[name].annotation
    if option in variables:
        yield _from_text(variables[option], kind), Place(f"environment: {environment_name(option)}")
    if option in flags:
        value = flags[option]
        parsed = _from_text(value, kind) if isinstance(value, str) else tuples(value)
        yield parsed, Place(flag_name(option, value))


def _from_text(text: str, kind: Any) -> Any:
    """Parse text as the type of a setting; text of another form is returned as it is, and the model reports it."""
    if kind is bool:
        return _TRUTHS.get(text.strip().lower(), text)
    if kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    if get_origin(kind) is tuple:
        # Words of a pasted key must not be quoted either, so such text is reported as a whole.
        return (text,) if holds_credential(text) else tuple(text.split())
    return text
