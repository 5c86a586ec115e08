"""Names that no name server answers for delay nothing but themselves: no other name, no mint, and not the exit."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from proxy.emulator import Certificates, Google, GoogleServer
from tests.support.chain import UPSTREAM, UPSTREAM_PORT, StartChain
from tests.support.emulated_setup import emulated_setup
from tests.support.names import name_server
from tests.support.peers.sockets import server, server_context

LONG = "connect_timeout = 25\nstream_wait_timeout = 25\nmint_timeout = 25\n"
ENDS_WITHIN_SECONDS = 8
"""Drain and exit; a look-up goes on for half a minute."""

SILENT = {f"slow{number}.test" for number in range(1, 7)}

both_loops = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


def loop_environment(loop: str, folder: Path) -> dict[str, str | None]:
    """Return the environment in which the sidecar runs on this loop."""
    if loop == "uvloop":
        return {}
    (folder / "uvloop.py").write_text("raise ImportError\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.asyncio
@both_loops
async def test_unanswered_names_delay_neither_another_name_nor_a_mint_nor_the_exit(
    chain: StartChain, certificates: Certificates, tmp_path: Path, loop: str
) -> None:
    google = Google()
    async with (
        name_server({"fast.test": ["127.0.0.1"], "metadata.test": ["127.0.0.1"]}, silent=SILENT) as names,
        GoogleServer(google, certificates) as endpoints,
    ):
        env = loop_environment(loop, tmp_path)
        env["GCE_METADATA_HOST"] = f"metadata.test:{endpoints.metadata_address.rpartition(':')[2]}"
        async with chain(
            "--drain-timeout",
            "1",
            settings=LONG,
            host="fast.test",
            routes={"fast": UPSTREAM, **{name: f"https://{name}" for name in SILENT}},
            signed=["fast"],
            env=env,
            under=names.under(tmp_path),
        ) as (running, upstream, client):
            for name in SILENT:
                client.open(f"/{name}/discover", method="GET", end=True)
            for name in SILENT:
                await names.asked_for(name)
            stream = client.open("/fast/discover", method="GET", end=True)
            peer, upstream_stream, fields, _ = await upstream.request()
            assert b"x-serverless-authorization" in dict(fields)
            peer.respond(upstream_stream, end=True)
            assert (await client.head(stream))[b":status"] == b"200"
            running.program.send(signal.SIGTERM)
            assert await running.program.ended(within_seconds=ENDS_WITHIN_SECONDS) == 0


@pytest.mark.asyncio
@both_loops
async def test_a_silent_metadata_server_delays_neither_a_route_without_token_nor_the_exit(
    chain: StartChain, tmp_path: Path, loop: str
) -> None:
    async with (
        name_server({"fast.test": ["127.0.0.1"]}, silent={"metadata.test"}) as names,
        chain(
            "--drain-timeout",
            "1",
            host="fast.test",
            routes={"fast": UPSTREAM, "signed": UPSTREAM},
            signed=["signed"],
            env=loop_environment(loop, tmp_path) | {"GCE_METADATA_HOST": "metadata.test"},
            under=names.under(tmp_path),
        ) as (running, upstream, client),
    ):
        signed = client.open("/signed/discover", method="GET", end=True)
        await names.asked_for("metadata.test")
        stream = client.open("/fast/discover", method="GET", end=True)
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream, end=True)
        assert (await client.head(stream))[b":status"] == b"200"
        # The mint gives up by itself. What it says names the server, and what to look at.
        await client.head(signed)
        said = (await client.body(signed)).decode()
        assert "metadata.test: its name was not answered within 2 s; check the name servers" in said
        # A repeated request shares the look-up that hangs.
        client.open("/signed/discover", method="GET", end=True)
        assert await client.ping()
        running.program.send(signal.SIGTERM)
        assert await running.program.ended(within_seconds=ENDS_WITHIN_SECONDS) == 0
        assert names.questions["metadata.test"] == 1


@pytest.mark.asyncio
@both_loops
async def test_requests_for_the_same_name_share_one_look_up(
    chain: StartChain, certificates: Certificates, tmp_path: Path, loop: str
) -> None:
    tls = server_context(*certificates.server_files("slow.test"))
    async with (
        name_server(silent={"slow.test"}) as names,
        server(tls) as other,
        chain(
            settings=LONG,
            host="slow.test",
            routes={"one": UPSTREAM, "other": f"https://slow.test:{other.port}"},
            env=loop_environment(loop, tmp_path),
            under=names.under(tmp_path),
        ) as (_, one, client),
    ):
        streams = {one: client.open("/one/x", end=True), other: client.open("/other/x", end=True)}
        await names.asked_for("slow.test")
        assert await client.ping()
        names.answer_now("slow.test", "127.0.0.1")
        for upstream, stream in streams.items():
            peer, upstream_stream, _, _ = await upstream.request()
            peer.respond(upstream_stream, end=True)
            assert (await client.head(stream))[b":status"] == b"200"
        assert names.questions["slow.test"] == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("late", ["connect_timeout", "stream_wait_timeout"])
async def test_an_unanswered_name_is_reported_and_its_look_up_serves_later_requests(
    chain: StartChain, tmp_path: Path, late: str
) -> None:
    other = {"connect_timeout": "stream_wait_timeout", "stream_wait_timeout": "connect_timeout"}[late]
    settings = f"{late} = 1\n{other} = 25"
    async with (
        name_server(silent={"slow.test"}) as names,
        chain(settings=settings, host="slow.test", under=names.under(tmp_path)) as (_, upstream, client),
    ):
        for _ in range(2):
            stream = client.open("/svc/discover", method="GET", end=True)
            assert (await client.head(stream))[b"x-cloudrun-sidecar-error"] == b"upstream-connect-timeout"
            said = (await client.body(stream)).decode()
            assert "slow.test" in said
            assert "check the name servers of this machine (/etc/resolv.conf)" in said
        stream = client.open("/svc/x", end=True)
        assert await client.ping()  # the sidecar has read the request before the look-up ends
        names.answer_now("slow.test", "127.0.0.1")
        peer, upstream_stream, _, _ = await upstream.request()
        peer.respond(upstream_stream, end=True)
        assert (await client.head(stream))[b":status"] == b"200"
        assert names.questions["slow.test"] == 1


@pytest.mark.asyncio
async def test_names_resolve_as_on_the_machine(chain: StartChain, tmp_path: Path) -> None:
    """Of /etc/hosts, of the search list, and not asked for alone where they have fewer dots than `ndots`."""
    known = {"short.corp.test": ["127.0.0.1"], "two.parts.corp.test": ["127.0.0.1"], "two.parts": ["192.0.2.1"]}
    hosts = ("listed", "short", "two.parts")
    async with name_server(known) as names:
        under = names.under(tmp_path, "search corp.test", "options ndots:2", hosts="127.0.0.1 localhost listed\n")
        routes = {host.replace(".", "-"): f"https://{host}:{UPSTREAM_PORT}" for host in hosts}
        async with chain(routes=routes, certificate_for=hosts, under=under) as (_, upstream, client):
            for host in hosts:
                stream = client.open(f"/{host.replace('.', '-')}/x", end=True)
                peer = await upstream.accepted()
                upstream_stream, _, _ = await peer.request()
                peer.respond(upstream_stream, end=True)
                assert (await client.head(stream))[b":status"] == b"200"
    assert names.questions == {"short.corp.test": 1, "two.parts.corp.test": 1}


@pytest.mark.asyncio
async def test_check_reports_a_silent_name_server_and_ends(tmp_path: Path) -> None:
    async with name_server(silent={"slow.test"}) as names, emulated_setup(tmp_path) as it:
        it.under.extend(names.under(tmp_path))
        async with asyncio.timeout(20):  # the look-up itself goes on for half a minute
            ran = await it.check("--connect-timeout", "0.5", url="https://slow.test")
        assert ran.faults() == {"dns": "dns-timeout"}
        assert "/etc/resolv.conf" in ran.steps()["dns"]["remedy"]


@pytest.mark.asyncio
async def test_check_shows_some_of_many_addresses_and_json_all_of_them(tmp_path: Path) -> None:
    many = [f"127.0.0.{number}" for number in range(1, 7)]
    async with name_server({"many.test": many}) as names, emulated_setup(tmp_path) as it:
        it.under.extend(names.under(tmp_path))
        ran = await it.check(url="https://many.test:9")
        step = ran.steps()["dns"]
        assert sorted(step["details"]["addresses"]) == many
        assert step["text"] == ", ".join([*step["details"]["addresses"][:4], "…"])


@pytest.mark.asyncio
async def test_token_reports_a_silent_name_server_and_ends(tmp_path: Path) -> None:
    async with name_server(silent={"metadata.test"}) as names, emulated_setup(tmp_path) as it:
        it.under.extend(names.under(tmp_path))
        it.environment["GCE_METADATA_HOST"] = "metadata.test"
        async with asyncio.timeout(20):
            ran = await it.run("token", "--route", f"svc={it.url}", "svc")
        assert ran.code == 1
        assert "metadata.test: its name was not answered within 2 s; check the name servers" in ran.err
