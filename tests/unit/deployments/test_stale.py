from __future__ import annotations

from collections.abc import Mapping

import pytest

from proxy.deployments.records import Deployment
from proxy.deployments.stale import examine
from proxy.routes import AllowLists, Route, RouteTable, parse_upstream

SIDECAR = "http://127.0.0.1:9081"
HOST = "greeter-123456789012.europe-west1.run.app"
ONE = "one@p.iam.gserviceaccount.com"
IMPERSONATE = "x-cloudrun-sidecar-gcp-impersonate-service-account"
LISTS = AllowLists(hosts=(HOST, "greeter.example.com"), accounts=(ONE,))
GREETER = Route(name="greeter", origin=parse_upstream("https://svc.run.app")[0])
BOTH, NAMED = RouteTable([GREETER], LISTS), RouteTable([GREETER])


def refusals(
    url: str, table: RouteTable = BOTH, own: bool = False, headers: Mapping[str, str] | None = None
) -> list[str | None]:
    deployment = Deployment(
        id="dp_1", url=url, headers=headers or {}, services=(), is_http1=False, has_own_authentication=own
    )
    return [one.refusal for one in examine([deployment], table, SIDECAR)]


@pytest.mark.parametrize(
    "url",
    [
        f"{SIDECAR}/greeter",
        "http://localhost:9081/greeter/",
        f"{SIDECAR}/{HOST}/",
        f"http://{HOST}/",
        "http://greeter.example.com/",
    ],
)
def test_a_deployment_that_the_sidecar_accepts_is_not_refused(url: str) -> None:
    assert refusals(url) == [None]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1:9080/",
        "https://other.run.app/",
        "http://service.internal/",
        "http://x.run.app:8080/",
        "http://a b/",
        "http://[",
        "http://x.run.app:99999/",
    ],
)
def test_deployments_that_are_called_elsewhere_are_left_out(url: str) -> None:
    assert refusals(url) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"{SIDECAR}/gone", "no route for this path"),
        (f"{SIDECAR}/other.run.app", "'other.run.app' is not in the list hosts of [deployments]"),
        ("http://other.run.app/", "'other.run.app' is not in the list hosts of [deployments]"),
        (f"{SIDECAR}/greeter/日本", "this path is not forwarded"),
        (f"{SIDECAR}/greeter//", "this path is not forwarded"),
    ],
)
def test_a_removed_route_and_a_host_that_is_not_allowed_are_reported(url: str, words: str) -> None:
    (refusal,) = refusals(url)
    assert words in str(refusal)


def test_without_lists_no_host_is_allowed() -> None:
    assert refusals(f"http://{HOST}/", NAMED) == [f"{HOST} is not in the list hosts of [deployments]"]
    assert "no route for this path" in str(refusals(f"{SIDECAR}/{HOST}", NAMED))


def test_headers_are_checked_as_the_sidecar_checks_them() -> None:
    assert refusals(f"{SIDECAR}/{HOST}", headers={IMPERSONATE: ONE}) == [None]
    assert "is not in the list accounts" in str(refusals(f"{SIDECAR}/{HOST}", headers={IMPERSONATE: "two@p.example"}))
    assert "register it without" in str(refusals(f"{SIDECAR}/greeter", headers={IMPERSONATE: ONE}))
    assert refusals(f"{SIDECAR}/greeter", headers={"x-team": "payments"}) == [None]


def test_restates_own_authentication_is_reported() -> None:
    assert "--gcp-id-token" in str(refusals(f"{SIDECAR}/greeter", own=True))


def test_deployments_are_sorted_by_url() -> None:
    urls = [f"{SIDECAR}/greeter", f"{SIDECAR}/gone", f"http://{HOST}/"]
    deployments = [
        Deployment(id=f"dp_{url}", url=url, headers={}, services=(), is_http1=False, has_own_authentication=False)
        for url in urls
    ]
    assert [one.deployment.url for one in examine(deployments, BOTH, SIDECAR)] == sorted(urls)
