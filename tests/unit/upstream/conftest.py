from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest

from proxy.emulator import Certificates
from tests.support.loops import LOOPS


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Sockets and TLS are the loop's: run those tests on the loop that is used where there is no other, too."""
    return LOOPS


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.create(tmp_path_factory.mktemp("certificates"))
