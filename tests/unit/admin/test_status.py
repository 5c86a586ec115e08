"""What the admin port tells in JSON, held to its OpenAPI document."""

from __future__ import annotations

import json
import re
from typing import Any

import aiohttp
import jsonschema
import pytest

from proxy.admin.plane import OPENAPI, PATHS
from proxy.admin.status import Status
from proxy.errors import TokenTimeout
from proxy.observe.health import RouteHealth
from proxy.observe.history import INTERVALS, History
from proxy.observe.live import TokenState
from proxy.observe.metrics import Metrics
from proxy.routes import Origin, Route
from proxy.tokens.model import TokenKey
from tests.support.live import StillState, view_of
from tests.support.observed import Observed
from tests.unit.admin.stage import HOSTS, LISTS, ROUTES, stage

DOCUMENT = json.loads(OPENAPI)


def schema_of(path: str, status: int) -> tuple[str, dict[str, Any]]:
    """Return content type and schema of an answer, references to the rest of the document included."""
    response = DOCUMENT["paths"][path]["get"]["responses"][str(status)]
    ((content_type, content),) = response["content"].items()
    return content_type, {**content["schema"], "components": DOCUMENT["components"]}


def test_the_document_describes_every_path_and_every_reference_leads_somewhere() -> None:
    assert set(DOCUMENT["paths"]) == set(PATHS)
    for reference in re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', OPENAPI):
        assert reference[1] in DOCUMENT["components"][reference[0]]
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.asyncio
@pytest.mark.parametrize("with_open", [False, True])
async def test_every_response_matches_the_document(with_open: bool) -> None:
    wrong = ("bad",) if with_open else ()
    async with (
        stage(with_open=with_open, problems=wrong, need_restart=wrong) as plane,
        aiohttp.ClientSession() as session,
    ):
        for path in (*PATHS, "/readyz?routes"):
            async with session.get(f"http://{plane.address}{path}") as response:
                content_type, schema = schema_of(path.partition("?")[0], response.status)
                assert response.content_type == content_type
                body = await response.json() if content_type == "application/json" else await response.text()
                jsonschema.validate(body, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.asyncio
async def test_status_shows_the_failure_of_a_route_its_token_and_the_last_minutes() -> None:
    async with (
        stage() as plane,
        aiohttp.ClientSession() as session,
        session.get(f"http://{plane.address}/status") as response,
    ):
        told = await response.json()
    greeter, orders, payments, broken, unsigned = told["routes"]
    assert (told["state"], told["workers"], told["engine"]) == ("ready", 1, "nghttp2 1.52.0")
    assert [route["name"] for route in told["routes"]] == [route.name for route in ROUTES]
    assert [route["well"] for route in told["routes"]] == [True, True, False, False, True]
    assert (greeter["in_flight"], greeter["ended"]) == (1, sum(greeter["history"]["requests"]))
    assert sum(greeter["history"]["errors"]) == greeter["errors"] > 0
    assert greeter["token"]["expires_at"] > told["now"]
    assert orders["gcp_delegates"] == ["relay@my-project.iam.gserviceaccount.com"]
    assert (payments["trouble"]["code"], payments["trouble"]["count"]) == ("invoker-missing", 3)
    assert (broken["token"], broken["trouble"]["code"], broken["trouble"]["minting"]) == (None, "token-timeout", True)
    assert (unsigned["token"], unsigned["minted_at"], unsigned["trouble"]) == (None, None, None)
    assert told["origins"][0]["goaways"] == {"NO_ERROR": 1}
    assert [told["origins"][0][name] for name in ("waiting", "waiting_clients", "queued_octets")] == [7, 2, 1 << 20]
    assert told["client_queues"] == {"connections": 3, "octets": 4 << 20, "largest_octets": 3 << 20}
    assert [(route["queued_octets"], route["waiting"]) for route in (greeter, orders)] == [(5 << 20, 0), (0, 7)]
    assert [failure["code"] for failure in told["failures"]] == ["token-timeout", *["invoker-missing"] * 3]


@pytest.mark.asyncio
async def test_status_shows_when_the_settings_were_read_what_was_wrong_and_what_needs_a_restart() -> None:
    async def settings(*, problems: tuple[str, ...] = (), need_restart: tuple[str, ...] = ()) -> tuple[Any, ...]:
        async with (
            stage(problems=problems, need_restart=need_restart) as plane,
            aiohttp.ClientSession() as session,
            session.get(f"http://{plane.address}/status") as response,
        ):
            told = await response.json()
        found = told["settings"]
        assert told["now"] - 60 < found["read_at"] <= told["now"]
        assert found["refused_at"] is None or found["read_at"] <= found["refused_at"] <= told["now"]
        names = ("reloaded", "refused", "problems", "need_restart")
        return found["refused_at"] is None, *(found[name] for name in names)

    assert await settings() == (True, 0, 0, [], [])
    problems = ("routes.toml: wrokers: is not a setting",)
    assert await settings(problems=problems) == (False, 0, 1, [*problems], [])
    assert await settings(problems=problems, need_restart=("listen",)) == (False, 1, 1, [*problems], ["listen"])


@pytest.mark.asyncio
async def test_routes_and_status_show_what_deployments_have_named_and_may_choose() -> None:
    async with stage(with_open=True) as plane, aiohttp.ClientSession() as session:
        async with session.get(f"http://{plane.address}/status") as response:
            told = await response.json()
        async with session.get(f"http://{plane.address}/routes") as response:
            routes = await response.json()
    assert told["deployments"] == {
        "hosts": [*LISTS.hosts],
        "accounts": [*LISTS.accounts],
        "audiences": [*LISTS.audiences],
    }
    cart, denied, others = told["open_routes"]
    assert [one["name"] for one in told["open_routes"]] == [*(f"https://{host}" for host in HOSTS), "(other)"]
    assert [(one["well"], one["ended"], one["errors"]) for one in (cart, denied)] == [(True, 40, 0), (False, 40, 40)]
    assert denied["trouble"]["code"] == "invoker-missing"
    assert cart["uses"][0]["token"]["expires_at"] > told["now"]
    assert [(use["url"], use["gcp_id_token"], use["gcp_audience"]) for use in others["uses"]] == [
        ("https://search.example.com", True, LISTS.audiences[0].partition("=")[2]),
        ("https://search.example.com", True, "https://search.example.com"),
        ("https://public-123456789012.europe-west1.run.app", False, None),
    ]
    assert [route["name"] for route in routes if "open" not in route] == [route.name for route in ROUTES]
    assert [route["url"] for route in routes if route.get("open")] == [
        *(f"https://{host}" for host in HOSTS),
        *["https://search.example.com"] * 2,
        "https://public-123456789012.europe-west1.run.app",
    ]


def test_an_origin_of_several_routes_is_listed_once() -> None:
    routes = [Route(name=name, origin=Origin("https", "svc.run.app", 443)) for name in ("a", "b")]
    metrics = Metrics()
    status = Status(view_of(metrics, StillState(routes, waiting=2)))
    told = json.loads("".join(status.pieces("ready", "taking requests")))
    assert [(origin["origin"], origin["waiting"]) for origin in told["origins"]] == [("https://svc.run.app", 2)]


def test_history_has_bounded_intervals_of_requests_errors_and_quantiles() -> None:
    metrics = Metrics()
    counted = metrics.route(ROUTES[0])
    history = History(metrics)
    for status, seconds in ((200, 0.004), (200, 0.02), (503, 0.02), (0, 0.9)):
        counted.started(Observed())
        counted.ended(Observed(), status, seconds)
    list(history.sample())
    newest = history.of("greeter")[-1]
    assert (newest.requests, newest.errors) == (4, 2)
    assert 0.01 <= newest.p50 <= 0.025
    assert 0.5 <= newest.p99 <= 1
    for _ in range(INTERVALS - 1):
        list(history.sample())
    assert history.of("greeter")[0] == newest
    list(history.sample())
    assert not any(interval.requests for interval in history.of("greeter"))
    metrics.route_removed(ROUTES[0])
    list(history.sample())
    assert not any(interval.requests for interval in history.of("greeter"))


def test_history_of_a_route_that_is_removed_and_added_again_begins_anew() -> None:
    metrics = Metrics()
    history = History(metrics)
    for requests in (100, 101):
        counted = metrics.route(ROUTES[0])
        for _ in range(requests):
            counted.started(Observed())
            counted.ended(Observed(), 200, 0.01)
        list(history.sample())
        assert history.of("greeter")[-1].requests == requests
        metrics.route_removed(ROUTES[0])


def test_a_route_that_cannot_mint_is_named_unless_a_token_is_left() -> None:
    metrics = Metrics()
    health = RouteHealth(metrics)
    live = StillState(ROUTES)
    status = Status(view_of(metrics, live, health))
    assert "".join(status.cannot_mint()) == ""
    health.mint_failed(TokenKey.for_route(ROUTES[0]), TokenTimeout("no answer"), 5.0, False)
    assert "".join(status.cannot_mint()) == "greeter: token-timeout: no answer\n"
    live.tokens["greeter"] = TokenState(None, None, 1.0)
    assert "".join(status.cannot_mint()) == ""
