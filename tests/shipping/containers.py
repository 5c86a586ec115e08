"""Runs services of the compose file as containers: image, user, read-only root, mounts, environment, names.

They share one network, process and mount namespace, which `isolated` makes; it needs root, and no container engine. In
that network every name is 127.0.0.1, so two services that listen on the same port cannot run at once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.shipping.buildah import Image
from tests.support.compose import Mount, Service
from tests.support.processes import Program, ProgramFailed, program

__all__ = ["Container", "Containers", "isolated"]


def isolated(*argv: str | Path, pass_fds: Sequence[int] = ()) -> int:
    """Run a command of this Python in its own namespaces; remaining processes and mounts end with it."""
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return subprocess.run([*namespaces, sys.executable, *argv], pass_fds=pass_fds, check=False).returncode


class Container:
    """A service with its file system, not running yet."""

    def __init__(self, service: Service, image: Image, root: Path, environment: Mapping[str, str]) -> None:
        self.service = service
        self._image = image
        self._root = root
        self._environment = {**image.environment, **service.environment, **environment}

    @asynccontextmanager
    async def running(self, log: Path) -> AsyncIterator[Program]:
        """Run the service; it is stopped at the end of the block."""
        entrypoint = self.service.entrypoint or self._image.entrypoint
        # A new entrypoint removes the image's command.
        command = self._image.command if self.service.entrypoint is None else ()
        words = [*entrypoint, *(command if self.service.command is None else self.service.command)]
        grace = self.service.stop_grace_seconds
        async with program(
            self.service.name, self._argv(words), env=self._clean(), log=log, stop_seconds=grace
        ) as child:
            yield child

    async def healthy(self, child: Program) -> None:
        """Return when the health check succeeds; raises ProgramFailed if it never does."""
        said = ""
        for _ in range(self.service.health_retries):
            if child.returncode is not None:
                raise ProgramFailed(child, f"ended with {child.returncode} before it was healthy")
            status, said = await self.execute(*(self.service.health_command or self._image.health_command))
            if status == 0:
                return
            await asyncio.sleep(self.service.health_interval_seconds / 4)
        raise ProgramFailed(child, f"is not healthy: {said}")

    async def execute(self, *argv: str) -> tuple[int, str]:
        """Run one command in the container, and return its exit status and its output."""
        async with program(f"{self.service.name}: {argv[0]}", self._argv(argv), env=self._clean()) as child:
            status = await child.ended(within_seconds=60)
        return status, "\n".join(child.lines)

    def _argv(self, words: Sequence[str]) -> list[str]:
        user = self.service.user or self._image.user
        setpriv, chroot = shutil.which("setpriv"), shutil.which("chroot")
        assert setpriv, chroot
        return [setpriv, "--no-new-privs", chroot or "", f"--userspec={user}", "--groups=", str(self._root), *words]

    def _clean(self) -> dict[str, str | None]:
        return {**dict.fromkeys(os.environ), **self._environment}


class Containers:
    """Makes containers; used inside `isolated`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hosts = folder / "hosts"
        self.name({})

    def name(self, addresses: Mapping[str, str]) -> None:
        """Set the host names of all containers, existing and new, to exactly these addresses."""
        lines = [f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **addresses}.items()]
        self._hosts.write_text("".join(lines))

    def make(self, service: Service, image: Image, root: Path, **environment: str) -> Container:
        """Give the service its mounts in `root`, a fresh copy of the image; `environment` is added to its own."""
        for name, value in service.sysctls.items():
            Path("/proc/sys", name.replace(".", "/")).write_text(value)
        sources = {mount: self._source(mount, root) for mount in service.volumes}
        bound = {"/etc/hosts": self._hosts, "/dev/null": Path("/dev/null")}
        bound |= {mount.target: source for mount, source in sources.items()}
        temporary = ["/dev/shm", *service.tmpfs]
        for target, source in bound.items():
            _point(root, target, is_folder=source.is_dir())
        for target in ["/proc", *temporary]:
            _point(root, target, is_folder=True)
        if service.read_only:
            _mount("--bind", root, root)
            _mount("--options", "remount,bind,ro", root)
        _mount("--types", "proc", "proc", f"{root}/proc")
        for target in temporary:
            _mount("--types", "tmpfs", "--options", "mode=1777", "tmpfs", f"{root}{target}")
        for target, source in bound.items():
            _mount("--bind", source, f"{root}{target}")
        for mount in sources:
            if mount.read_only:
                _mount("--options", "remount,bind,ro", f"{root}{mount.target}")
        return Container(service, image, root, environment)

    def _source(self, mount: Mount, root: Path) -> Path:
        """Return the file on this machine, or the folder of the volume; a new one gets the owner of its mount point."""
        if mount.source.startswith("/"):
            return Path(mount.source)
        volume = self._folder / "volumes" / mount.source
        if not volume.exists():
            volume.mkdir(parents=True)
            covered = Path(f"{root}{mount.target}")
            if covered.exists():
                os.chown(volume, covered.stat().st_uid, covered.stat().st_gid)
        return volume


def _point(root: Path, target: str, *, is_folder: bool) -> None:
    """Make a mount point."""
    point = Path(f"{root}{target}")
    if is_folder:
        point.mkdir(parents=True, exist_ok=True)
    else:
        point.parent.mkdir(parents=True, exist_ok=True)
        point.touch()


def _mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)
