"""Several sidecars with the settings of `config/kubernetes/shared`, behind HAProxy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tests.load.places import listens, locate, run_program
from tests.soak.sidecars import Sidecars
from tests.support.ports import free_port
from tests.support.readme import REPOSITORY

__all__ = ["ROUTE", "Replicas", "balancer_settings", "sidecar_settings"]

ROUTE: Final = "greeter"
"""The route in the settings file."""
_SETTINGS: Final = REPOSITORY / "config" / "kubernetes" / "shared" / "routes.toml"


def sidecar_settings(*, identity_key: str, url: str, connection_age_seconds: float) -> str:
    """Return the settings file of the overlay, with this key, this service and this age of connections.

    Raises ValueError if the file does not set one of them.
    """
    text = _SETTINGS.read_text()
    for name, value in (
        ("restate_identity_keys", f'["{identity_key}"]'),
        ("max_connection_age", f"{connection_age_seconds:g}"),
        ("url", f'"{url}"'),
    ):
        text, count = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"{_SETTINGS.name} sets {name} {count} times")
    return text


def balancer_settings(port: int, replicas: Mapping[int, int]) -> str:
    """Return haproxy.cfg: connections on `port` go to the sidecar that has the fewest and whose admin port is ready.

    `replicas` are the sidecars' admin ports by their ports.
    """
    servers = "".join(
        f"    server sidecar-{number} 127.0.0.1:{own} check port {admin} inter 500ms fall 2 rise 1\n"
        for number, (own, admin) in enumerate(replicas.items(), 1)
    )
    return f"""\
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout check 2s
    option redispatch 1
frontend restate
    bind 127.0.0.1:{port}
    default_backend sidecars
backend sidecars
    balance leastconn
    option httpchk
    http-check send meth GET uri /readyz ver HTTP/1.1 hdr host localhost
    http-check expect status 200
{servers}"""


class Replicas:
    """The sidecars. Each listens on the same ports again after it was replaced."""

    def __init__(self, folder: Path, settings: str, environment: Mapping[str, str | None], count: int) -> None:
        self.port = free_port()
        """Where HAProxy listens on 127.0.0.1."""
        self.each: list[Sidecars] = []
        self._folder = folder
        self._ports = {free_port(): free_port() for _ in range(count)}
        config = folder / "routes.toml"
        config.write_text(settings)
        for own, admin in self._ports.items():
            flags: list[str | Path] = ["--config", config, "--listen", f"127.0.0.1:{own}"]
            self.each.append(Sidecars([*flags, "--admin", f"127.0.0.1:{admin}"], environment))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the sidecars and HAProxy for the time of a `with`."""
        config = self._folder / "haproxy.cfg"
        config.write_text(balancer_settings(self.port, self._ports))
        async with AsyncExitStack() as stack:
            for sidecars in self.each:
                await stack.enter_async_context(sidecars.running())
            argv: list[str | Path] = [locate("haproxy", "Debian's haproxy"), "-db", "-f", config]
            haproxy = await stack.enter_async_context(run_program("haproxy", argv))
            await listens(haproxy, self.port)
            yield

    async def requests(self, http: aiohttp.ClientSession) -> dict[tuple[str, int], int]:
        """Return how many requests each sidecar has answered, by its name and process."""
        counts = {}
        for number, sidecars in enumerate(self.each, 1):
            async with http.get(f"http://{sidecars.current.admin}/metrics") as response:
                text = await response.text()
            counts[f"sidecar {number}", sidecars.current.program.pid] = int(
                sum(
                    sample.value
                    for family in text_string_to_metric_families(text)
                    for sample in family.samples
                    if sample.name == "cloudrun_sidecar_requests_total" and sample.labels["route"] == ROUTE
                )
            )
        return counts
