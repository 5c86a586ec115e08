"""Which routes are well, and the failures that are kept."""

from __future__ import annotations

import pytest

from proxy.errors import (
    BadRequest,
    CredentialsNotFound,
    Draining,
    Failure,
    TokenTimeout,
    UpstreamConnectFailed,
    UpstreamConnectionLost,
    all_failures,
)
from proxy.http2.events import ErrorCode
from proxy.observe.explanation import remedy_of
from proxy.observe.health import LAST_FAILURES, RouteHealth
from proxy.observe.metrics import Metrics
from proxy.routes import OTHER, UNMATCHED, Origin, Route
from proxy.tokens.model import Token, TokenKey
from tests.support.observed import Observed

ROUTE = Route(name="greeter", origin=Origin("https", "greeter-123456789012.europe-west1.run.app", 443))
KEY = TokenKey.for_route(ROUTE)
FORBIDDEN = Observed(status=403, principal="restate@p.iam.gserviceaccount.com")


class Stage:
    """A route, its counters and its health, on a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.health = RouteHealth(self.metrics, clock=lambda: self.now)
        self.counted = self.metrics.route(ROUTE)
        self.observed = self.health.route(ROUTE)

    def succeed(self) -> None:
        self.counted.started(Observed())
        self.counted.ended(Observed(), 200, 0.1)


def test_a_route_is_failing_from_a_failure_to_the_next_success() -> None:
    stage = Stage()
    assert stage.health.trouble(ROUTE) is None
    stage.observed.error_response(FORBIDDEN, [(b"www-authenticate", b"Bearer", False)], b"")
    stage.now = 1060.0
    stage.observed.error_response(FORBIDDEN, [], b"")
    found = stage.health.trouble(ROUTE)
    assert found is not None
    assert (found.code, found.status, found.since, found.at, found.count) == ("invoker-missing", 403, 1000, 1060, 2)
    assert "roles/run.invoker" in found.remedy
    assert "restate@p.iam.gserviceaccount.com" in found.reason
    assert found.commands[0].startswith("gcloud run services add-iam-policy-binding")
    stage.succeed()
    assert stage.health.trouble(ROUTE) is None
    stage.now = 2000.0
    stage.observed.local_reply(Observed(status=503), UpstreamConnectFailed("refused"))
    found = stage.health.trouble(ROUTE)
    assert found is not None
    assert (found.code, found.since, found.count) == ("upstream-connect-failed", 2000, 1)


def test_a_response_that_breaks_off_is_a_failure_whatever_its_status() -> None:
    stage = Stage()
    begun = Observed(status=200)
    for count in (1, 2):
        stage.now += 1.0
        stage.counted.started(begun)
        stage.observed.aborted(begun, UpstreamConnectionLost("closed"))
        stage.counted.ended(begun, 200, 0.1)
        found = stage.health.trouble(ROUTE)
        assert found is not None
        assert (found.code, found.since, found.count) == ("upstream-connection-lost", 1001, count)
    stage.succeed()
    assert stage.health.trouble(ROUTE) is None


@pytest.mark.parametrize(
    ("status", "by", "code", "fails"),
    [
        (0, "upstream", ErrorCode.INTERNAL_ERROR, True),
        (200, "upstream", ErrorCode.INTERNAL_ERROR, True),
        (0, "upstream", ErrorCode.CANCEL, True),
        (0, "upstream", ErrorCode.NO_ERROR, True),
        (200, "upstream", ErrorCode.NO_ERROR, True),
        (200, "upstream", ErrorCode.CANCEL, True),
        (0, "upstream", ErrorCode.REFUSED_STREAM, False),
        (200, "downstream", ErrorCode.INTERNAL_ERROR, False),
        (0, "sidecar", ErrorCode.PROTOCOL_ERROR, False),
    ],
)
def test_a_reset_by_the_service_is_a_failure_unless_it_may_follow_a_response(
    status: int, by: str, code: ErrorCode, fails: bool
) -> None:
    stage = Stage()
    reset = Observed(status=status)
    stage.counted.started(reset)
    stage.observed.stream_reset(reset, by, code)
    stage.counted.ended(reset, status, 0.1)
    found = stage.health.trouble(ROUTE)
    assert (found is not None) == fails
    if found is not None:
        assert found.code == "upstream-reset"
        assert code.name in found.reason


@pytest.mark.parametrize("failure", [BadRequest("a rule is broken"), Draining("over")])
def test_failures_of_a_request_and_of_draining_are_kept_but_do_not_make_a_route_fail(failure: Failure) -> None:
    stage = Stage()
    stage.observed.local_reply(Observed(status=400), failure)
    assert stage.health.trouble(ROUTE) is None
    assert [kept.code for kept in stage.health.last_failures] == [failure.code]


def test_an_error_response_that_stops_no_invocation_is_no_failure() -> None:
    stage = Stage()
    stage.observed.error_response(Observed(status=500), [], b"")
    assert stage.health.trouble(ROUTE) is None
    assert not stage.health.last_failures


def test_the_last_twenty_failures_are_kept_with_or_without_a_route() -> None:
    stage = Stage()
    nowhere = stage.health.route(None)
    for number in range(LAST_FAILURES + 5):
        stage.now = float(number)
        nowhere.local_reply(Observed(status=404), BadRequest("no route"))
    assert LAST_FAILURES == 20
    assert [kept.at for kept in stage.health.last_failures] == [float(number) for number in range(5, 25)]
    assert {kept.route for kept in stage.health.last_failures} == {UNMATCHED}


def test_a_route_that_cannot_mint_fails_without_requests_until_a_mint_succeeds() -> None:
    stage = Stage()
    stage.health.mint_failed(KEY, TokenTimeout("no answer"), 5.0, False)
    stage.now = 1010.0
    stage.health.mint_failed(KEY, TokenTimeout("no answer"), 5.0, True)
    found = stage.health.trouble(ROUTE)
    assert found is not None
    assert (found.route, found.code, found.since, found.count) == ("greeter", "token-timeout", 1000, 2)
    assert found.minting
    assert stage.health.mint_trouble(ROUTE) == found
    assert stage.health.trouble(ROUTE, has_token=True) is None
    stage.observed.local_reply(Observed(status=503), TokenTimeout("no answer"))
    stage.health.minted(Token(key=KEY, authorization=b"Bearer x", expires_at=1.0, principal=None), 0.1, False)
    assert stage.health.trouble(ROUTE) is None
    assert stage.health.mint_trouble(ROUTE) is None


def test_failed_mints_do_not_affect_an_unsigned_route() -> None:
    unsigned = Route(name="open", origin=ROUTE.origin, signed=False)
    stage = Stage()
    stage.health.route(unsigned)
    stage.health.mint_failed(TokenKey.for_route(unsigned), TokenTimeout("no answer"), 5.0, False)
    assert stage.health.trouble(unsigned) is None


def test_the_failures_of_an_unchanged_route_survive_a_new_snapshot() -> None:
    stage = Stage()
    stage.observed.error_response(FORBIDDEN, [], b"")
    stage.health.route(ROUTE)
    assert stage.health.trouble(ROUTE) is not None
    stage.succeed()
    assert stage.health.trouble(ROUTE) is None
    changed = Route(name="greeter", origin=Origin("https", "other.run.app", 443))
    stage.observed.error_response(FORBIDDEN, [], b"")
    stage.health.route(changed)
    assert stage.health.trouble(changed) is None


def test_a_removed_route_is_forgotten_with_its_mints() -> None:
    stage = Stage()
    stage.health.mint_failed(KEY, TokenTimeout("no answer"), 5.0, False)
    stage.observed.error_response(FORBIDDEN, [], b"")
    stage.health.route_removed(ROUTE)
    assert stage.health.trouble(ROUTE) is None


@pytest.mark.parametrize("kind", all_failures())
def test_every_failure_has_a_remedy(kind: type[Failure]) -> None:
    remedy = remedy_of(kind("a sentence"))
    assert remedy
    assert remedy[0].isupper()
    assert "\n" not in remedy


def test_the_remedy_of_a_failure_itself_comes_before_that_of_its_kind() -> None:
    failure = CredentialsNotFound("nothing answers there", remedy="correct or unset GCE_METADATA_HOST")
    assert remedy_of(failure) == "Correct or unset GCE_METADATA_HOST."


def test_failed_mints_are_kept_for_named_routes_alone() -> None:
    stage = Stage()
    host = Origin("https", "open.run.app", 443)
    of_deployment = Route(name=str(host), origin=host, is_open=True)
    observed = stage.health.route(of_deployment)
    stage.health.mint_failed(TokenKey.for_route(of_deployment), TokenTimeout("no answer"), 5.0, False)
    assert stage.health.mint_trouble(of_deployment) is None
    observed.local_reply(Observed(status=503), TokenTimeout("no answer"))
    assert [failure.route for failure in stage.health.last_failures] == [f"https://{host.host}"]


def open_route(
    account: str | None = None, host: str = "greeter-123456789012.europe-west1.run.app", **more: str
) -> Route:
    origin = Origin("https", host, 443)
    return Route(name=str(origin), origin=origin, is_open=True, impersonate=account, **more)  # type: ignore[arg-type]


def test_a_host_that_deployments_call_in_several_ways_has_the_trouble_of_each_until_a_success() -> None:
    stage = Stage()
    one = open_route()
    first = stage.health.route(one)
    other = stage.health.route(open_route("other@p.iam.gserviceaccount.com"))
    counted = stage.metrics.route(one)
    for observed, count in ((first, 1), (other, 2), (first, 3)):
        observed.error_response(FORBIDDEN, [], b"")
        found = stage.health.open_trouble(one.label, has_tokens=True)
        assert found is not None
        assert (found.code, found.count, found.since) == ("invoker-missing", count, 1000)
    counted.ended(Observed(), 200, 0.1)
    assert stage.health.open_trouble(one.label, has_tokens=True) is None
    assert stage.health.trouble(ROUTE) is None, "the named route to the same host is another one"
    assert stage.health.open_trouble("https://never.called", has_tokens=False) is None


def test_hosts_without_a_label_of_their_own_share_their_trouble() -> None:
    stage = Stage()
    for host in ("a.example", "b.example"):
        stage.health.route(open_route(host=host, shared_label=OTHER)).error_response(FORBIDDEN, [], b"")
    found = stage.health.open_trouble(OTHER, has_tokens=True)
    assert found is not None
    assert (found.route, found.count) == (OTHER, 2)


def test_a_failed_mint_is_no_trouble_of_a_host_that_has_all_its_tokens() -> None:
    stage = Stage()
    one = open_route()
    stage.health.route(one).local_reply(Observed(status=503), TokenTimeout("late"))
    found = stage.health.open_trouble(one.label, has_tokens=False)
    assert found is not None
    assert (found.code, found.minting) == ("token-timeout", True)
    assert stage.health.open_trouble(one.label, has_tokens=True) is None
