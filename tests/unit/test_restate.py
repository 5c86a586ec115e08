from __future__ import annotations

import pytest

from proxy.restate import DISCOVERY_ACCEPT, is_discovery, is_manifest, manifest_services


@pytest.mark.parametrize("path", [b"/discover", b"/greeter/discover", b"/a/b/discover", b"/greeter/discover?x=/y"])
def test_a_get_of_discover_under_any_prefix_is_a_discovery(path: bytes) -> None:
    assert is_discovery(b"GET", path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"POST", b"/greeter/discover"),
        (b"HEAD", b"/greeter/discover"),
        (b"GET", b"/greeter/discovery"),
        (b"GET", b"/greeter/rediscover"),
        (b"GET", b"/greeter/discover/"),
        (b"GET", b"/greeter/health?next=/discover"),
        (b"POST", b"/greeter/invoke/Greeter/discover"),
        (b"GET", b"/greeter/serdes/1"),
        (b"GET", b""),
    ],
)
def test_nothing_else_is_a_discovery(method: bytes, path: bytes) -> None:
    assert not is_discovery(method, path)


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/vnd.restate.endpointmanifest.v1+json", True),
        ("Application/vnd.restate.endpointmanifest.v12+JSON ; charset=utf-8", True),
        ("application/vnd.restate.endpointmanifest.v+json", False),
        ("application/vndXrestate.endpointmanifest.v1+json", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_a_manifest_is_known_by_its_content_type(content_type: str, expected: bool) -> None:
    assert is_manifest(content_type) is expected


def test_all_that_is_accepted_is_a_manifest() -> None:
    offered = DISCOVERY_ACCEPT.decode().split(", ")
    assert len(offered) == 4
    assert all(map(is_manifest, offered))


def test_a_manifest_lists_handlers_by_service() -> None:
    body = b'{"services": [{"name": "A", "ty": "SERVICE", "handlers": [{"name": "x"}]}, {"name": "B", "handlers": []}]}'
    assert manifest_services(body) == {"A": ["x"], "B": []}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"services": null}',
        b'{"services": [{"name": "A"}]}',
        b'{"services": [{"name": 1, "handlers": []}]}',
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
def test_what_is_no_manifest_is_refused_without_being_quoted(body: bytes) -> None:
    with pytest.raises(ValueError, match="no manifest") as caught:
        manifest_services(body)
    assert caught.value.__cause__ is None
