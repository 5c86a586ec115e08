"""Builds images without a registry and an engine: Buildah in its own folder, on a base image from debootstrap."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BuildFailed", "Builder", "Image", "local"]

MIRROR = "http://deb.debian.org/debian"
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


class BuildFailed(RuntimeError):
    """A command failed; the text has its last lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The run-time configuration of an image."""

    reference: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: dict[str, str]
    user: str
    health_command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Builder:
    """Builds and mounts images; all files are below `folder`."""

    folder: Path
    network: int
    """Descriptor of the network namespace in which packages can be downloaded."""

    def base(self, reference: str, suite: str) -> None:
        """Make a minimal Debian with the name of a registry's image."""
        tree = self.folder / suite
        self.run("debootstrap", "--variant=minbase", suite, tree, MIRROR)
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, tree, "/")
        self.buildah("commit", "--quiet", "--rm", container, reference)
        shutil.rmtree(tree)

    def build(self, reference: str, context: Path, target: str | None, arguments: Mapping[str, str]) -> None:
        """Build a stage of the Dockerfile in `context`, or the last one. Raises BuildFailed."""
        words = ["bud", "--isolation", "chroot", "--format", "docker", "--layers", "--pull-never", *self._index()]
        words += ["--target", target] if target else []
        words += [f"--build-arg={name}={value}" for name, value in arguments.items()]
        self.buildah(*words, "--tag", local(reference), context)

    def restate(self, reference: str, base: str, program: Path) -> None:
        """Make an image like Restate's, with its name: Debian, curl, certificate authorities, and the program."""
        container = self.buildah("from", "--pull-never", base)
        install = "apt-get update && apt-get install --yes --no-install-recommends ca-certificates curl"
        self.buildah("run", "--isolation", "chroot", container, "sh", "-c", install)
        self.buildah("copy", "--quiet", container, program, "/usr/local/bin/restate-server")
        self.buildah("config", "--entrypoint", '["/usr/local/bin/restate-server"]', "--cmd", "", container)
        self.buildah("commit", "--quiet", "--rm", "--format", "docker", container, reference)

    def mounted(self, image: Image) -> Path:
        """Return the root of a new container of the image."""
        return Path(self.buildah("mount", self.buildah("from", "--pull-never", image.reference)))

    def run_inside(self, image: Image, *argv: str) -> str:
        """Run a command in a container as the image's user, and return its output. Raises BuildFailed."""
        container = self.buildah("from", "--pull-never", image.reference)
        try:
            return self.buildah("run", "--isolation", "chroot", container, "--", *argv)
        finally:
            self.buildah("rm", container)

    def inspect(self, reference: str) -> Image:
        """Return the configuration of an image. Raises BuildFailed if the image does not exist."""
        reference = local(reference)
        said: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", reference))["Docker"]["config"]
        health = (said.get("Healthcheck") or {}).get("Test") or ["NONE"]
        return Image(
            reference=reference,
            entrypoint=tuple(said.get("Entrypoint") or ()),
            command=tuple(said.get("Cmd") or ()),
            environment=dict(line.split("=", 1) for line in said.get("Env") or ()),
            user=said.get("User") or "0:0",
            health_command=tuple(health[1:]) if health[0] == "CMD" else (),
        )

    def buildah(self, *arguments: str | Path) -> str:
        """Run buildah and return its output. Raises BuildFailed."""
        storage = [f"--root={self.folder}/storage", f"--runroot={self.folder}/run", "--storage-driver=overlay"]
        return self.run("buildah", *storage, *arguments)

    def run(self, *argv: str | Path) -> str:
        """Run a command and return its output. Raises BuildFailed."""
        outside = ["nsenter", f"--net=/proc/self/fd/{self.network}", "--"]
        with self.log.open("ab+") as log:
            log.write(f"+ {' '.join(map(str, argv))}\n".encode())
            log.flush()
            done = subprocess.run(
                [*outside, *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[self.network],
                check=False,
            )
            log.write(done.stdout)
        if done.returncode:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            raise BuildFailed(f"{argv[0]} ended with {done.returncode}:\n{tail}")
        return done.stdout.decode().strip()

    @property
    def log(self) -> Path:
        """The log of the commands."""
        return self.folder / "build.log"

    def _index(self) -> Sequence[str]:
        """Return the settings of pip in this environment, for pip in the build: index and trusted authorities."""
        settings = self.folder / "pip.conf"
        lines = ["[global]", "cert = /run/host-authorities.pem"]
        index = os.environ.get("PIP_INDEX_URL") or _pip_setting("global.index-url")
        lines += [f"index-url = {index}"] if index else []
        settings.write_text("\n".join(lines) + "\n")
        trusted = os.environ.get("PIP_CERT") or AUTHORITIES
        return [f"--volume={trusted}:/run/host-authorities.pem:ro", f"--volume={settings}:/etc/pip.conf:ro"]


def _pip_setting(name: str) -> str:
    command = [sys.executable, "-m", "pip", "config", "get", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def local(reference: str) -> str:
    """Return the full name of an image; a name without a registry is one of this machine."""
    return reference if "/" in reference else f"localhost/{reference}"
