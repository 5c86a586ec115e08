"""`docker-compose.yml` as Compose reads it: merged, interpolated, and each service as a value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["Mount", "Service", "interpolated", "load", "seconds", "service", "start_order"]

_REFERENCE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}|(?P<bad>))")
_DURATION = re.compile(r"(\d+)(s|m)")


class Mount(NamedTuple):
    """A named volume, or a file of this machine, in a service's file system."""

    source: str
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One service; None and emptiness mean what the image says."""

    name: str
    image: str
    target: str | None
    """The stage of the Dockerfile that it is built of; None where it is not built."""
    build_arguments: Mapping[str, str]
    entrypoint: tuple[str, ...] | None
    command: tuple[str, ...] | None
    environment: Mapping[str, str]
    user: str | None
    read_only: bool
    volumes: tuple[Mount, ...]
    tmpfs: tuple[str, ...]
    aliases: tuple[str, ...]
    """The names by which the other services reach it, its own first."""
    sysctls: Mapping[str, str]
    health_command: tuple[str, ...]
    health_interval_seconds: int
    health_retries: int
    depends_on: Mapping[str, str]
    profiles: tuple[str, ...]
    stop_grace_seconds: int


def load(file: Path, environment: Mapping[str, str]) -> dict[str, Service]:
    """Return the services of a compose file by name. ValueError for a reference that is none."""
    document = interpolated(yaml.safe_load(file.read_text()), environment)
    secrets = {name: secret["file"] for name, secret in document.get("secrets", {}).items()}
    return {name: service(name, told, secrets) for name, told in document["services"].items()}


def interpolated(value: Any, environment: Mapping[str, str]) -> Any:
    """Return the value with `${NAME}` and `${NAME:-default}` replaced in its texts, as Compose does."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: _replacement(found, environment), value)
    if isinstance(value, list):
        return [interpolated(item, environment) for item in value]
    if isinstance(value, dict):
        return {key: interpolated(item, environment) for key, item in value.items()}
    return value


def service(name: str, told: Mapping[str, Any], secrets: Mapping[str, str]) -> Service:
    """Return the service that an entry of a compose file tells of; `secrets` are files of this machine by name.

    ValueError for what would need a shell.
    """
    health = told.get("healthcheck", {})
    test = health.get("test", ["CMD"])
    if test[0] != "CMD":
        raise ValueError(f"the health check of {name} needs a shell")
    networks = told.get("networks", {}).get("default", {})
    return Service(
        name=name,
        image=told["image"],
        target=told.get("build", {}).get("target"),
        build_arguments=told.get("build", {}).get("args", {}),
        entrypoint=_words(told.get("entrypoint")),
        command=_words(told.get("command")),
        environment=told.get("environment", {}),
        user=told.get("user"),
        read_only=told.get("read_only", False),
        volumes=tuple(_mounts(told, secrets)),
        tmpfs=tuple(told.get("tmpfs", ())),
        aliases=(name, *networks.get("aliases", ())),
        sysctls=told.get("sysctls", {}),
        health_command=tuple(test[1:]),
        health_interval_seconds=seconds(health.get("interval", "30s")),
        health_retries=health.get("retries", 3),
        depends_on={other: how["condition"] for other, how in told.get("depends_on", {}).items()},
        profiles=tuple(told.get("profiles", ())),
        stop_grace_seconds=seconds(told.get("stop_grace_period", "10s")),
    )


def start_order(services: Mapping[str, Service], *wanted: str) -> list[str]:
    """Return the wanted services and what they depend on, each after what it depends on."""
    order: list[str] = []

    def visit(name: str) -> None:
        for needed in services[name].depends_on:
            visit(needed)
        if name not in order:
            order.append(name)

    for name in wanted:
        visit(name)
    return order


def seconds(duration: str) -> int:
    """Return what `90s` or `1m` says; ValueError for anything else."""
    found = _DURATION.fullmatch(duration)
    if not found:
        raise ValueError(f"{duration!r} is no duration in seconds or minutes")
    return int(found[1]) * (60 if found[2] == "m" else 1)


def _replacement(found: re.Match[str], environment: Mapping[str, str]) -> str:
    if found[0] == "$$":
        return "$"
    if not found["name"]:
        raise ValueError(f"a $ that begins no reference, in {found.string!r}")
    return environment.get(found["name"]) or found["default"] or ""


def _words(told: list[str] | None) -> tuple[str, ...] | None:
    if isinstance(told, str):
        raise ValueError(f"{told!r} is not a list of words")
    return None if told is None else tuple(told)


def _mounts(told: Mapping[str, Any], secrets: Mapping[str, str]) -> Iterator[Mount]:
    for text in told.get("volumes", ()):
        source, target, *more = text.split(":")
        yield Mount(source, target, more == ["ro"])
    for name in told.get("secrets", ()):
        yield Mount(secrets[name], f"/run/secrets/{name}", True)
