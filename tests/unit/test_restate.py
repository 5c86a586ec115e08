from __future__ import annotations

import pytest

from proxy.restate import is_discovery


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
