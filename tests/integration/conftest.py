from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from proxy.emulator import Certificates
from tests.support import ports
from tests.support.chain import Routes, StartChain


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.create(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def chain(certificates: Certificates, tmp_path: Path) -> StartChain:
    """Start an upstream, the sidecar and a client: `async with chain() as (sidecar, upstream, client)`."""
    return StartChain(certificates=certificates, folder=tmp_path)


@pytest.fixture
def routes(tmp_path: Path) -> Routes:
    """Write a settings file with one unsigned route a keyword, and whatever else is given first.

    Each call writes another file: a sidecar that runs reads its own again when it changes.
    """
    numbers = count(1)

    def write(extra: str = "", **urls: str) -> Path:
        file = tmp_path / f"routes-{next(numbers)}.toml"
        tables = [f'[routes.{name}]\nurl = "{url}"\ngcp_id_token = false\n' for name, url in urls.items()]
        file.write_text("\n".join([extra, *tables]))
        return file

    return write


@pytest.fixture
def free_port() -> int:
    return ports.free_port()
