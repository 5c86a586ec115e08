"""A real restate-server reaches the sidecar by TLS, and a certificate is replaced while it invokes."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import cast

import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, GoogleServer
from tests.support.container import Recorder
from tests.support.restate_server import RestateServer
from tests.support.services import sample_services
from tests.support.sidecar import sidecar

INVOCATIONS = 100


def replace(certificate: Path, key: Path, pair: tuple[Path, Path]) -> None:
    """Replace certificate and key, each by a new file of the same name."""
    for new, old in zip(pair, (certificate, key), strict=True):
        shutil.copy(new, f"{old}.new")
        Path(f"{old}.new").rename(old)


@pytest.mark.asyncio
@pytest.mark.parametrize("use_http_11", [False, True], ids=["h2", "http1.1"])
async def test_restate_invokes_over_tls_while_the_certificate_is_replaced(tmp_path: Path, use_http_11: bool) -> None:
    google, certificates = Google(), Certificates.create(tmp_path / "google")
    certificate, key = (Path(shutil.copy(file, tmp_path)) for file in certificates.server_files("localhost"))
    cloud_run = CloudRun(Recorder(sample_services()), google, invokers=[google.metadata_account])
    (tmp_path / "restate").mkdir()
    async with (
        CloudRunServer(cloud_run, certificates) as service,
        GoogleServer(google, certificates) as endpoints,
        sidecar(
            *("--route", f"samples={service.url}", "--upstream-ca", certificates.ca_file),
            *("--tls-listen", "127.0.0.1:0", "--tls-certificate", certificate, "--tls-key", key),
            env={"GCE_METADATA_HOST": endpoints.metadata_address},
        ) as running,
        RestateServer.running(tmp_path / "restate", ca_file=certificates.ca_file) as restate,
    ):
        (line, *_) = await running.logged('"listening"')
        (address,) = cast(list[str], line["tls_listen"])
        url = f"https://localhost:{address.rpartition(':')[2]}/samples"
        registered = await restate.register(url, use_http_11=use_http_11)
        assert registered.status == 201, registered.body

        async def greet(number: int) -> None:
            assert await restate.invoke("Greeter", "greet", f"{number}") == (200, f"Hello, {number}!")

        async with asyncio.TaskGroup() as group:
            for number in range(INVOCATIONS):
                group.create_task(greet(number))
            replace(certificate, key, certificates.server_files("localhost", "b.example"))
            running.program.send(signal.SIGHUP)
            await running.logged("TLS certificate replaced")
        await greet(INVOCATIONS)
