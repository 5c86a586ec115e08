"""A stand-in for `docker`: Buildah builds, containers.py runs; only known options are accepted.

`build`, `run` in the foreground, and `compose up`, `run` and `restart` of the compose file in the folder. Everything
runs in one network, where each service is 127.0.0.1, as if its ports were published under the numbers they have inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.readme.stand_in import Call, Refused, read
from tests.shipping.buildah import Builder, BuildFailed
from tests.shipping.containers import Container, Containers
from tests.shipping.steps import Wrong, check
from tests.support.compose import Mount, Service, load, service, start_order
from tests.support.processes import Program, ProgramFailed

__all__ = ["Docker", "Up"]

COMPOSE: Final = "docker-compose.yml"
AUTHORITY: Final = "/authority.pem"


class Up:
    """A container, and its running process."""

    def __init__(self, container: Container, log: Path) -> None:
        self.container = container
        self._log = log
        self._stack = AsyncExitStack()

    async def start(self) -> Program:
        """Start it."""
        self.program = await self._stack.enter_async_context(self.container.running(self._log))
        return self.program

    async def healthy(self) -> None:
        """Return when its health check succeeds."""
        await self.container.healthy(self.program)

    async def close(self) -> None:
        """Stop it and ignore how it ends."""
        await self._stack.aclose()

    async def stop(self) -> None:
        """Stop it; raises Wrong unless it ends in order."""
        async with self._stack:
            status = await self.program.stop(within_seconds=self.container.service.stop_grace_seconds)
        check(status == 0, f"{self.container.service.name} ended with {status}:\n{self.program.tail()}")


class Docker:
    """The engine: images of the builder, and containers, in a folder of its own."""

    def __init__(self, builder: Builder, folder: Path) -> None:
        self.up: dict[str, Up] = {}
        """Running containers: services by name, others by the name of the image."""
        self._builder = builder
        self._folder = folder
        self._containers = Containers(folder)
        self._around: Mapping[str, str] = {}
        self._authority: Path | None = None

    def put_into(self, addresses: Mapping[str, str], authority: Path | None) -> None:
        """Set the host names outside the services, and the default certificate authority of the containers."""
        self._around, self._authority = addresses, authority
        self._containers.name(addresses)

    async def do(self, call: Call) -> str:
        """Run one command and return its output; raises Refused if it is unknown or fails."""
        verb, *rest = call.words or [""]
        does = {"build": self._build, "run": self._run, "compose": self._compose}.get(verb)
        if not does:
            raise Refused("`build`, `run` and `compose` are all that is known here")
        try:
            return await does(call, rest)
        except (BuildFailed, ProgramFailed, ValueError, Wrong) as exc:
            raise Refused(str(exc)) from exc

    async def down(self) -> None:
        """Stop all containers, the newest first; raises Wrong unless all end in order."""
        for name in reversed(list(self.up)):
            await self.up.pop(name).stop()

    async def close(self) -> None:
        """Stop the remaining containers after a failure."""
        for name in reversed(list(self.up)):
            await self.up.pop(name).close()

    async def _build(self, call: Call, words: Sequence[str]) -> str:
        folders, options = read(words, valued=("--tag", "--target", "--build-arg"))
        if len(folders) != 1 or "--tag" not in options:
            raise Refused("one folder and a --tag are needed here")
        arguments = dict([options["--build-arg"].split("=", 1)] if "--build-arg" in options else [])
        context = call.folder / folders[0]
        await asyncio.to_thread(self._builder.build, options["--tag"], context, options.get("--target"), arguments)
        return ""

    async def _run(self, call: Call, words: Sequence[str]) -> str:
        """Run a container until it is stopped."""
        valued = ("--cap-drop", "--network", "--stop-timeout")
        plain, options = read(words, flags=("--rm", "--read-only"), valued=valued, then=True)
        wanted = {"--rm": "", "--cap-drop": "ALL", "--network": "host"}
        if {name: options.get(name) for name in wanted} != wanted or not plain:
            raise Refused("here a container is removed, has no rights, and is in the one network that there is")
        image, *command = plain
        arguments = {
            "image": image,
            "command": command or None,
            "read_only": "--read-only" in options,
            "stop_grace_period": f"{options.get('--stop-timeout', 10)}s",
        }
        one = self._made(service(image, arguments, {}))
        self.up[image] = one
        try:
            child = await one.start()
            await call.told_to_end()
            await one.stop()
        finally:
            self.up.pop(image, None)
        return "".join(f"{line}\n" for line in child.lines)

    async def _compose(self, call: Call, words: Sequence[str]) -> str:
        plain, options = read(words, valued=("--profile",), then=True)
        services = load(call.folder / COMPOSE, call.environment)
        profile = options.get("--profile")
        if profile and not any(profile in one.profiles for one in services.values()):
            raise Refused(f"no service has the profile {profile}")
        verb, *rest = plain or [""]
        does = {"up": self._compose_up, "run": self._compose_run, "restart": self._compose_restart}.get(verb)
        if not does:
            raise Refused("`up`, `run` and `restart` are all that is known here")
        return await does(call, services, rest)

    async def _compose_up(self, call: Call, services: Mapping[str, Service], words: Sequence[str]) -> str:
        names, options = read(words, flags=("--build", "--wait"))
        if "--wait" not in options:
            raise Refused("it would take the terminal; --wait is needed here")
        _all_there(names, services)
        wanted = names or [name for name, one in services.items() if not one.profiles]
        if "--build" in options:
            for one in {services[name].image: services[name] for name in start_order(services, *wanted)}.values():
                if one.target:
                    arguments = one.image, call.folder, one.target, one.build_arguments
                    await asyncio.to_thread(self._builder.build, *arguments)
        await self._start(services, wanted)
        return ""

    async def _compose_run(self, call: Call, services: Mapping[str, Service], words: Sequence[str]) -> str:
        names, options = read(words, flags=("--rm",))
        _all_there(names, services)
        if len(names) != 1 or "--rm" not in options:
            raise Refused("one service is run here, and then removed")
        (wanted,) = names
        await self._start(services, services[wanted].depends_on)
        async with self._made(services[wanted]).container.running(self._folder / f"{wanted}.log") as child:
            status = await child.ended(within_seconds=60)
        if status:
            raise Refused(f"{wanted} ended with {status}:\n{child.tail()}")
        return "".join(f"{line}\n" for line in child.lines)

    async def _compose_restart(self, call: Call, services: Mapping[str, Service], words: Sequence[str]) -> str:
        names, _ = read(words)
        _all_there(names, self.up)
        for name in names or list(self.up):
            await self.up[name].stop()
            await self.up[name].start()
            await self.up[name].healthy()
        return ""

    async def _start(self, services: Mapping[str, Service], wanted: Sequence[str] | Mapping[str, str]) -> None:
        """Start these services and their dependencies, in order, unless they run already."""
        order = start_order(services, *wanted)
        names = {
            alias: "127.0.0.1" for name in {*order, *self.up} & services.keys() for alias in services[name].aliases
        }
        self._containers.name({**self._around, **names})
        for name in order:
            if name not in self.up:
                self.up[name] = self._made(services[name])
                await self.up[name].start()
                await self.up[name].healthy()

    def _made(self, wanted: Service) -> Up:
        """Return a new container of a service, with the certificate authority of the others."""
        trust = {}
        if self._authority and "SSL_CERT_FILE" not in wanted.environment:
            trust["SSL_CERT_FILE"] = AUTHORITY
            wanted = replace(wanted, volumes=(*wanted.volumes, Mount(str(self._authority), AUTHORITY, True)))
        image = self._builder.inspect(wanted.image)
        container = self._containers.make(wanted, image, self._builder.mounted(image), **trust)
        return Up(container, self._folder / f"{wanted.name}.log")


def _all_there(names: Sequence[str], known: Mapping[str, object]) -> None:
    if missing := [name for name in names if name not in known]:
        raise Refused(f"there is no service {', '.join(missing)} here")
