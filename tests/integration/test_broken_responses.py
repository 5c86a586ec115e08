"""Responses that break off: what an operator sees of them, in the log and on the status page."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes

from tests.support.chain import StartChain
from tests.support.peers.sockets import Reset


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [ErrorCodes.INTERNAL_ERROR, ErrorCodes.CANCEL, ErrorCodes.NO_ERROR])
@pytest.mark.parametrize("begun", [True, False])
async def test_a_service_that_resets_streams_is_named_in_the_log_and_on_the_status_page(
    chain: StartChain, begun: bool, code: ErrorCodes
) -> None:
    async with chain("--access-log") as (running, far, near):
        stream = near.open("/svc/invoke/S/h", end=True)
        peer, far_stream, _, _ = await far.request()
        if begun:
            peer.respond(far_stream)
            await near.head(stream)
        peer.reset(far_stream, code)
        with pytest.raises(Reset):
            await near.response(stream)
        (warning,) = await running.logged("exchange reset")
        (access,) = await running.logged('"message": "exchange"')
        page = await running.program.answers(f"http://{running.admin}/metrics")
    assert (warning["severity"], warning["route"], warning["code"]) == ("WARNING", "svc", "upstream-reset")
    assert code.name in str(warning["reason"])
    assert warning["remedy"] == "Read the log of the service."
    assert (access["reset_by"], access["reset_code"]) == ("upstream", code.name)
    assert 'cloudrun_sidecar_route_well{route="svc"} 0\n' in page


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("code", "well"), [(ErrorCodes.NO_ERROR, True), (ErrorCodes.CANCEL, True), (ErrorCodes.INTERNAL_ERROR, False)]
)
async def test_a_service_may_say_after_its_response_that_it_wants_no_more_of_the_request(
    chain: StartChain, code: ErrorCodes, well: bool
) -> None:
    async with chain("--access-log") as (running, far, near):
        stream = near.open("/svc/invoke/S/h")
        peer, far_stream, _, _ = await far.request()
        peer.respond(far_stream)
        await peer.send(far_stream, b"whole", end=True)
        assert (await near.response(stream)).content == b"whole"
        peer.reset(far_stream, code)
        await peer.ping()
        await near.close()
        await running.logged('"message": "exchange"')
        page = await running.program.answers(f"http://{running.admin}/metrics")
    assert f'cloudrun_sidecar_route_well{{route="svc"}} {int(well)}\n' in page


@pytest.mark.asyncio
async def test_a_route_on_which_connections_are_lost_after_the_head_is_not_well(chain: StartChain) -> None:
    async with chain() as (running, far, near):
        stream = near.open("/svc/invoke/S/h", end=True)
        peer, far_stream, _, _ = await far.request()
        peer.respond(far_stream)
        await near.head(stream)
        await peer.close()
        with pytest.raises(Reset):
            await near.response(stream)
        page = await running.program.answers(f"http://{running.admin}/metrics")
    assert 'cloudrun_sidecar_route_well{route="svc"} 0\n' in page
