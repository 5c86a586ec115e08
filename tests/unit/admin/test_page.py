from __future__ import annotations

import re
from html.parser import HTMLParser

from proxy import __version__
from proxy.admin.page import status_page
from proxy.errors import Draining
from proxy.observe.exposition import Exposition
from proxy.observe.health import RouteHealth
from proxy.observe.metrics import Metrics
from proxy.routes import Origin, Route
from tests.support.live import StillState
from tests.support.observed import Observed

VOID = {"meta"}


class Document(HTMLParser):
    """The texts of a page, in order, and its tags; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.texts.append(data.strip())


def route(name: str, **more: object) -> Route:
    return Route(name=name, origin=Origin("https", "svc.run.app", 443), **more)  # type: ignore[arg-type] # free keywords


def page(*routes: Route, metrics: Metrics | None = None, ready: bool = True, words: str = "ready: yes") -> Document:
    return Document(status_page(ready, words, routes, metrics or Metrics()))


def test_the_page_shows_state_reason_and_version() -> None:
    document = page(words="draining: live exchanges finish", ready=False)
    assert document.texts[0] == "draining – cloudrun-sidecar"
    assert "draining" in document.texts
    assert "live exchanges finish" in document.texts
    assert f"version {__version__}" in document.texts
    assert ("span", {"class": "state"}) in document.tags
    assert ("span", {"class": "state well"}) in page().tags


def test_the_page_shows_each_route_with_upstream_identity_and_counts() -> None:
    metrics = Metrics()
    orders = metrics.route(route("team/orders"))
    for _ in range(5):
        orders.started(Observed())
    for _ in range(3):
        orders.ended(Observed(), 200, 0.1)
    orders.local_reply(Observed(), Draining("the sidecar is shutting down"))
    texts = page(
        route("greeter", base_path="/base"),
        route("team/orders", impersonate="i@p.com", delegates=("d@p.com", "e@p.com"), audience="custom"),
        route("", signed=False),
        metrics=metrics,
    ).texts
    start = texts.index("/greeter")
    assert texts[start:] == [
        "/greeter", "https://svc.run.app/base", "ambient", "audience", "https://svc.run.app", "0", "0", "0",
        "/team/orders", "https://svc.run.app", "i@p.com", "through d@p.com, e@p.com", "audience", "custom",
        "2", "3", "1",
        "/", "https://svc.run.app", "none: requests are forwarded unsigned", "0", "0", "0",
        "More", "/livez", "/readyz", "/startupz", "/metrics", "/routes",
    ]  # fmt: skip


def test_the_default_route_shows_its_counts_and_adds_no_metric_label() -> None:
    metrics = Metrics()
    rest = route("")
    metrics.route(rest).started(Observed())
    texts = page(rest, metrics=metrics).texts
    assert texts[texts.index("More") - 3] == "1"
    text = "".join(Exposition(metrics, RouteHealth(metrics), StillState([rest])).pieces())
    assert 'route=""' not in text


def test_settings_are_escaped() -> None:
    evil = "<script>alert('x')</script>"
    document = page(route("a", audience=evil, impersonate=evil, delegates=(evil,)), words=f"{evil}: {evil}")
    assert "script" not in {tag for tag, _ in document.tags}
    assert document.texts.count(evil) == 4


def test_the_page_loads_no_external_files() -> None:
    document = page(route("a"))
    assert {tag for tag, _ in document.tags} & {"script", "link", "img", "iframe", "object"} == set()
    text = status_page(True, "ready: yes", [], Metrics())
    assert not re.search(r"url\(|@import|https?://|\son\w+=", text)
