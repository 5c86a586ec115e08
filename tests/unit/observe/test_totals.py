"""The sums of what ended workers have counted: which are kept, and under which names."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest

from proxy.observe.totals import AMBIENT, Totals, state_line
from proxy.routes import OTHER, UNMATCHED, AllowLists, Origin, Route

ROUTES = tuple(Route(name=name, origin=Origin("https", f"{name}.example", 443)) for name in ("greeter", "orders"))


def test_totals_of_what_is_gone_are_dropped() -> None:
    totals = Totals()
    for _ in range(2):
        totals.add(state_line("route", "a", {"n": 1, "buckets": [[1, 0], 0.5]}, {"x": 1}))
    totals.add(state_line("route", "b", {"n": 1}, None))
    totals.add(state_line("route", "b", {"m": 1}, None))
    totals.add(state_line("route", "idle", {}, {}))
    assert [json.loads(line) for line in totals.lines()] == [
        ["route", "a", {"n": 2, "buckets": [[2, 0], 1.0]}, None],
        ["route", "b", {"n": 1, "m": 1}, None],
    ]
    totals.keep([Route(name="b", origin=ROUTES[0].origin)], AllowLists())
    assert names(totals) == ["b"]


def names(totals: Totals) -> list[str]:
    return [json.loads(line)[1] for line in totals.lines()]


def count(totals: Totals) -> None:
    """Add what a worker has counted for both routes, a deployment and a request without a route."""
    for name in ("greeter", "orders", "https://a.example", UNMATCHED, OTHER):
        totals.add(state_line("route", name, {"n": 1}, None))
    for name in (*(str(route.origin) for route in ROUTES), "https://a.example", OTHER):
        totals.add(state_line("origin", name, {"opened": 1}, None))
    for account in (AMBIENT, "i@p.iam.gserviceaccount.com"):
        totals.add(state_line("mints", f"service account {account}", {"failures": {"token-timeout": 1}}, None))


@pytest.mark.parametrize(
    ("routes", "allowed", "expected"),
    [
        (ROUTES[:1], AllowLists(), {"greeter", "https://greeter.example", f"service account {AMBIENT}"}),
        (
            [replace(ROUTES[1], impersonate="i@p.iam.gserviceaccount.com")],
            AllowLists(),
            {"orders", "https://orders.example", "service account i@p.iam.gserviceaccount.com"},
        ),
        ((), AllowLists(("a.example",)), {"https://a.example", f"service account {AMBIENT}"}),
        (
            (),
            AllowLists(("a.example",), ("i@p.iam.gserviceaccount.com",)),
            {"https://a.example", f"service account {AMBIENT}", "service account i@p.iam.gserviceaccount.com"},
        ),
    ],
)
def test_only_what_the_settings_name_is_kept_and_added(
    routes: Iterable[Route], allowed: AllowLists, expected: set[str]
) -> None:
    before, after = Totals(), Totals()
    count(before)
    before.keep(routes, allowed)
    after.keep(routes, allowed)
    count(after)
    assert set(names(before)) == set(names(after)) == {*expected, UNMATCHED, OTHER}


def test_hosts_of_a_wildcard_share_a_sum_when_there_are_too_many() -> None:
    totals = Totals()
    totals.keep(ROUTES, AllowLists(("*-123456789012.europe-west1.run.app", "a.example")))
    count(totals)
    for _ in range(2):
        for number in range(130):
            host = f"https://s{number}-123456789012.europe-west1.run.app"
            totals.add(state_line("route", host, {"n": 1}, None))
            totals.add(state_line("origin", host, {"opened": 1}, None))
    for kind, key in (("route", "n"), ("origin", "opened")):
        sums = {name: sums[key] for of, name, sums, _ in map(json.loads, totals.lines()) if of == kind}
        assert sum("-123456789012." in name for name in sums) == 100
        assert sums[OTHER] == 1 + 60
        assert sum(sums.values()) == 260 + (5 if kind == "route" else 4)
