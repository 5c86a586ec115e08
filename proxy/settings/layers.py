"""The sources of settings (file and environment), and the problems found in them.

This module does not import pydantic: `cloudrun-sidecar healthcheck`, which a kubelet may start every few seconds, finds
the admin address with it and without the model.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from proxy.quoting import NOT_SHOWN, one_line, plain, quoted
from proxy.settings.file_state import file_state

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_CONFIG",
    "FileLayer",
    "Place",
    "Problem",
    "SettingsInvalid",
    "did_you_mean",
    "environment_name",
    "flag_name",
    "read_environment",
    "read_file",
    "toml_key",
    "tuples",
    "variable_value",
]

PREFIX: Final = "CLOUDRUN_SIDECAR_"
CONFIG_VARIABLE: Final = f"{PREFIX}CONFIG"
"""Variable with the path of the settings file."""
_NO_SETTINGS: Final = frozenset({CONFIG_VARIABLE, f"{PREFIX}BUILD"})
"""The latter tells `setup.py` what to compile."""
DEFAULT_CONFIG: Final = Path("config/routes.toml")
"""Read if it exists and no other file is named; relative to the working directory."""

# Kubernetes sets these in every container if there is a Service named `cloudrun-sidecar`; for one that is named
# `cloudrun-sidecar-admin`, they have `ADMIN_` before them. They are not settings.
_SERVICE_HOST: Final = "SERVICE_HOST"
_OF_KUBERNETES: Final = re.compile(r"SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")

# tomllib quotes single characters (also as `\n` and `\x01`), which help, and keys, which may be pasted secrets.
_QUOTED_KEY: Final = re.compile(
    r"\('.*'(?:,\)|\))|\(\".*\"(?:,\)|\))|'(?!\\(?:[a-z]|x..|u.{4})')[^']{2,}'|\"[^\"]{2,}\"", re.DOTALL
)
_LINE_ENDS_IN_TEXT: Final = r"Illegal character '\n'"


class Problem(NamedTuple):
    """One thing that is wrong with the settings."""

    where: str
    """File and key, environment variable, or flag."""
    what: str
    """What is wrong there, and what to do."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class SettingsInvalid(Exception):
    """The settings cannot be used; `problems` lists everything that is wrong, in the order of the layers."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(frozen=True, slots=True)
class Place:
    """The origin of a value."""

    text: str
    """`config/routes.toml`, `environment: CLOUDRUN_SIDECAR_…` or `--flag`."""
    keys: tuple[str, ...] | None = None
    """The keys of the value in a file; None for other origins."""

    def at(self, *more: str) -> str:
        """Return this place as text; in a file with its key, and with the keys `more` below it."""
        if self.keys is None:
            return self.text
        # A key may be a pasted secret, too.
        keys = [key if plain(key) is not None else NOT_SHOWN for key in (*self.keys, *more)]
        return f"{self.text}: {toml_key(*keys)}"


class FileLayer(NamedTuple):
    """The content of a settings file; an empty document if there is none, or if it cannot be read."""

    document: dict[str, Any]
    """The parsed TOML, with tuples instead of lists."""
    name: str
    """The path of the file, as given."""
    directory: Path
    """Base of relative paths in the file."""
    problems: list[Problem]
    """Why the file cannot be used; empty if it can."""
    path: Path | None = None
    """The absolute path, symbolic links not resolved; None if no file was read."""
    state: tuple[int, ...] = ()
    """The state (`file_state`) in which it was read."""


def flag_name(setting: str, value: object = None) -> str:
    """Return `--drain-timeout` for `drain_timeout`, and `--no-access-log` for `access_log` that is False."""
    return ("--no-" if value is False else "--") + setting.replace("_", "-")


def environment_name(setting: str) -> str:
    """Return `CLOUDRUN_SIDECAR_DRAIN_TIMEOUT` for `drain_timeout`."""
    return PREFIX + setting.upper()


def toml_key(*keys: str) -> str:
    """Return keys as a dotted TOML key for people, quoted where TOML requires it: `routes."team/greeter".url`."""
    return ".".join(key if _BARE_KEY.fullmatch(key) else f'"{key}"' for key in keys)


def did_you_mean(word: str, known: Collection[str], spelled: Callable[[str], str] = str) -> str:
    """Return `; did you mean …?` with the most similar name, formatted by `spelled`; `""` if none is similar."""
    # Not imported at the top: most processes never need it, and it takes 0.2 MiB.
    from difflib import get_close_matches

    near = get_close_matches(word, known, n=1)
    return f"; did you mean {spelled(near[0])}?" if near else ""


def variable_value(environment: Mapping[str, str], name: str) -> str:
    """Return the value of a variable, "" if it is not set, without blanks and line ends around it.

    A value from a file or a Secret often has a line end. One of blanks alone stays as it is.
    """
    text = environment.get(name, "")
    return text.strip() or text


def read_file(config: Path | None, environment: Mapping[str, str]) -> FileLayer:
    """Read the settings file: `config`, else `$CLOUDRUN_SIDECAR_CONFIG`, else `config/routes.toml` if that exists.

    Problems are a file that was named and does not exist, a file that cannot be read, and one that is not valid TOML
    (with line and column), or too much for Python.
    """
    variable = variable_value(environment, CONFIG_VARIABLE)
    named = config or (Path(variable) if variable else None)
    path = named or DEFAULT_CONFIG
    document: dict[str, Any] = {}
    problems: list[Problem] = []
    text = ""
    read: Path | None = None
    state: tuple[int, ...] = ()
    if plain(path) is None and not os.path.exists(path):
        place = "--config" if config else f"environment: {CONFIG_VARIABLE}"
        problem = Problem(place, f"must be the path of a settings file, and is {quoted(path)}")
        return FileLayer({}, place, Path(), [problem])
    try:
        with path.open(encoding="utf-8-sig") as file:
            state = file_state(file.fileno())
            text = file.read()
        read = path.absolute()  # with its `..`, which a link before it makes another folder
        document = tuples(tomllib.loads(text))
    except FileNotFoundError:
        if path.is_symlink():
            problems.append(Problem(str(path), "is a link to a file that does not exist"))
        elif named is not None:
            problems.append(Problem(str(path), "there is no such file; name one that exists"))
    except UnicodeDecodeError as exc:
        problems.append(Problem(str(path), f"is not UTF-8, as TOML must be (at octet {exc.start})"))
    except tomllib.TOMLDecodeError as exc:
        # tomllib gives line and column, except for an error at the end of the file.
        lines = text.split("\n")
        end = f"at line {len(lines)}, column {len(lines[-1]) + 1}, the end of the file"
        what = _QUOTED_KEY.sub("a key", str(exc)).replace("at end of document", end)
        what = what.replace(_LINE_ENDS_IN_TEXT, "a quote is missing before the end of the line")
        problems.append(Problem(str(path), f"is not valid TOML: {one_line(what)}"))
    except (ValueError, RecursionError):  # of Python, not of TOML
        what = "has a number of thousands of digits, or hundreds of lists or tables in each other"
        problems.append(Problem(str(path), what))
    except IsADirectoryError:
        also = ", as an empty path is" if path == Path() else ""
        problems.append(Problem(str(path), f"is a directory{also}; name a file in it"))
    except OSError as exc:
        problems.append(Problem(str(path), f"cannot be read: {exc.strerror}"))
    return FileLayer(document, str(path), path.parent, problems, read, state)


def tuples(value: Any) -> Any:
    """Return a value of TOML or of a flag with tuples instead of lists: settings are immutable."""
    if isinstance(value, list):
        return tuple(map(tuples, value))
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    return value


def read_environment(environment: Mapping[str, str], known: Collection[str]) -> tuple[dict[str, str], list[Problem]]:
    """Return the values of the `CLOUDRUN_SIDECAR_…` variables by setting, and the problems with them.

    An empty variable counts as not set; one of blanks alone does not. A variable that names no setting is a problem: a
    misspelled one would silently have no effect. Variables that Kubernetes sets for a Service, which its
    `…_SERVICE_HOST` shows, are left out.
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    given = [name.removeprefix(PREFIX) for name in environment if name.startswith(PREFIX)]
    services = ["", *(name.removesuffix(_SERVICE_HOST) for name in given if name.endswith(f"_{_SERVICE_HOST}"))]
    for setting in given:
        variable = f"{PREFIX}{setting}"
        text = variable_value(environment, variable)
        if variable in _NO_SETTINGS or not text:
            continue
        if any(setting.startswith(name) and _OF_KUBERNETES.fullmatch(setting, len(name)) for name in services):
            continue
        if setting.lower() in known and setting == setting.upper():
            found[setting.lower()] = text
        else:
            hint = did_you_mean(setting.lower(), known, environment_name)
            shown = variable if plain(variable) is not None else f"{PREFIX}{NOT_SHOWN}"
            problems.append(Problem(f"environment: {shown}", f"is not a setting{hint}"))
    return found, problems
