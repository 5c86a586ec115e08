"""The environment of the README's commands: a clone, and an emulated Google under its real names."""

from __future__ import annotations

import fcntl
import shutil
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from proxy.emulator import API_HOSTS, Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from proxy.emulator.cloud_run import Application
from tests.demo.service import app
from tests.readme.gcloud import Gcloud
from tests.support.container import Recorder
from tests.support.readme import REPOSITORY

__all__ = ["ADDRESSES", "Surroundings", "clone", "google", "loopback_up"]

SERVICE_HOST: Final = "greeter-123456789012.europe-west1.run.app"
SERVICE_ADDRESS: Final = "127.0.0.2"
GOOGLE_ADDRESS: Final = "127.0.0.3"
ADDRESSES: Final = {**dict.fromkeys(API_HOSTS, GOOGLE_ADDRESS), SERVICE_HOST: SERVICE_ADDRESS}
"""The addresses of Google's names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The emulated Google; `gcloud` fills it."""

    gcloud: Gcloud
    container: Recorder
    """The requests to the service."""
    authority: Path
    """PEM file of the certificate authority."""


def loopback_up() -> None:
    """Bring the loopback interface of a new network namespace up (netdevice(7))."""
    with socket.socket() as any_socket:
        flags = struct.pack("16sh14x", b"lo", 0x1)  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, flags)  # SIOCSIFFLAGS


@asynccontextmanager
async def google(folder: Path) -> AsyncIterator[Surroundings]:
    """Run the emulated Google at ADDRESSES, in an empty network namespace; its files are in the folder."""
    emulated, certificates = Google(), Certificates.create(folder / "google")
    container = Recorder(cast(Application, app))
    cloud_run = CloudRun(container, emulated, url=f"https://{SERVICE_HOST}", invokers=[])
    async with (
        GoogleServer(emulated, certificates, host=GOOGLE_ADDRESS, tls_port=443),
        CloudRunServer(cloud_run, certificates, host=SERVICE_ADDRESS, port=443, names=(SERVICE_HOST,)),
    ):
        yield Surroundings(gcloud=Gcloud(emulated, cloud_run), container=container, authority=certificates.ca_file)


_STAMPS = (".packages", ".installed")
"""Of the Makefile, in the order in which they are made."""


def clone(folder: Path) -> Path:
    """Return a folder like a clone: links to all files, and copies of those that a reader edits.

    To make, what is installed is up to date: installing from here would put the path of this folder into its programs.
    """
    made = folder / "clone"
    made.mkdir()
    for entry in REPOSITORY.iterdir():
        if entry.name not in ("config", "dist", ".git", ".venv"):
            (made / entry.name).symlink_to(entry)
    (made / ".venv").mkdir()
    for entry in (REPOSITORY / ".venv").iterdir():
        if entry.name not in _STAMPS:
            (made / ".venv" / entry.name).symlink_to(entry)
    for stamp in _STAMPS:
        (made / ".venv" / stamp).touch()
    shutil.copytree(REPOSITORY / "config", made / "config")
    (made / "config/routes.toml").unlink(missing_ok=True)  # a settings file of the person who works here
    return made
