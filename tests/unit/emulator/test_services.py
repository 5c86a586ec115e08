"""Several services behind one address, found by name."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp
import pytest

from proxy.emulator import Certificates, CloudRun, CloudRunServer, Google, Services, Verdict
from tests.support.emulated import CALLER, Names, trusting

HASH = "https://greeter-4f5oxh2qza-ew.a.run.app"
NUMBERED = "https://greeter-123456789012.europe-west1.run.app"
OTHER = "https://other-123456789012.europe-west1.run.app"


class Named:
    """An application that responds with its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.phases: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for _ in range(2):
                phase = (await receive())["type"]
                self.phases.append(phase)
                await send({"type": f"{phase}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.name.encode()})


def _services(google: Google) -> tuple[Services, list[Named]]:
    apps = [Named("greeter"), Named("other")]
    greeter = CloudRun(
        apps[0],
        google,
        url=NUMBERED,
        other_urls=[HASH],
        tags=["blue"],
        domains=["greeter.example.com"],
        custom_audiences=["greeter"],
        invokers=[CALLER],
    )
    return Services([greeter, CloudRun(apps[1], google, url=OTHER, invokers=[CALLER])]), apps


@pytest.mark.asyncio
async def test_each_service_has_its_names_its_audiences_and_a_certificate(
    google: Google, certificates: Certificates
) -> None:
    services, apps = _services(google)
    async with CloudRunServer(services, certificates) as server:
        assert [app.phases for app in apps] == [["lifespan.startup"]] * 2
        connector = aiohttp.TCPConnector(
            resolver=Names(server.url.removeprefix("https://")), ssl=trusting(certificates.ca_file)
        )
        async with aiohttp.ClientSession(connector=connector) as session:
            for url, audience, expected in (
                (NUMBERED, NUMBERED, "greeter"),
                (NUMBERED, HASH, "greeter"),
                (HASH, NUMBERED, "greeter"),
                (HASH, "greeter", "greeter"),
                ("https://greeter.example.com", HASH, "greeter"),
                ("https://greeter.example.com", "https://greeter.example.com", 401),
                (HASH.replace("//", "//blue---"), HASH, "greeter"),
                (NUMBERED.replace("//", "//blue---"), NUMBERED.replace("//", "//blue---"), 401),
                (OTHER, OTHER, "other"),
                (OTHER, NUMBERED, 401),
            ):
                token, _ = google.id_token(CALLER, audience)
                async with session.get(f"{url}/", headers={"Authorization": f"Bearer {token}"}) as answer:
                    got = await answer.text() if answer.status == 200 else answer.status
                assert got == expected, (url, audience)
            async with session.get(OTHER, headers={"Host": "green---other-123456789012.europe-west1.run.app"}) as lost:
                assert lost.status == 404
    assert [app.phases[-1] for app in apps] == ["lifespan.shutdown"] * 2
    assert services.verdicts == {Verdict.ACCEPTED: 7, Verdict.AUDIENCE: 3, Verdict.UNKNOWN_HOST: 1}


@pytest.mark.asyncio
@pytest.mark.parametrize("name", [None, "stranger.example.com", "other-123456789012.europe-west4.run.app"])
async def test_a_client_that_names_no_service_gets_no_certificate_of_theirs(
    google: Google, certificates: Certificates, name: str | None
) -> None:
    services, _ = _services(google)
    async with CloudRunServer(services, certificates) as server:
        host, _, port = server.url.removeprefix("https://").rpartition(":")
        tls = trusting(certificates.ca_file)
        tls.check_hostname = False
        with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|unable to get local issuer"):
            await asyncio.open_connection(host, int(port), ssl=tls, server_hostname=name or "127.0.0.1")


def test_two_services_cannot_share_a_host(google: Google) -> None:
    one = CloudRun(Named("a"), google, url=OTHER, invokers=[])
    with pytest.raises(ValueError, match="Two services have the host other-123456789012"):
        Services([one, CloudRun(Named("b"), google, url=HASH, other_urls=[OTHER], invokers=[])])
    with pytest.raises(ValueError, match="no services"):
        Services([])


@pytest.mark.asyncio
async def test_an_application_that_cannot_start_stops_the_start(google: Google, certificates: Certificates) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def without(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError

    services = Services(
        [CloudRun(without, google, url=OTHER, invokers=[]), CloudRun(failing, google, url=HASH, invokers=[])]
    )
    with pytest.raises(Exception, match="no database"):
        async with CloudRunServer(services, certificates):
            pass
