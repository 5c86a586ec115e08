from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.errors import PathRefused, RouteNotFound
from proxy.routes import UNMATCHED, Origin, Route, RouteTable, check_name, parse_upstream

RUN = Origin("https", "svc.run.app", 443)


def route(name: str, base_path: str = "") -> Route:
    return Route(name=name, origin=RUN, base_path=base_path)


def went(table: RouteTable, path: str) -> tuple[str, str]:
    match = table.match(path.encode())
    return match.route.name, match.path.decode()


# ---- matching


def test_the_prefix_is_replaced_by_the_base_path() -> None:
    table = RouteTable([route("greeter"), route("orders", "/v2/api")])
    assert went(table, "/greeter/discover") == ("greeter", "/discover")
    assert went(table, "/orders/invoke/S/h") == ("orders", "/v2/api/invoke/S/h")


def test_the_prefix_alone_leads_to_the_base_path_or_the_root() -> None:
    table = RouteTable([route("greeter"), route("orders", "/v2")])
    assert went(table, "/greeter") == ("greeter", "/")
    assert went(table, "/greeter/") == ("greeter", "/")
    assert went(table, "/orders") == ("orders", "/v2")
    assert went(table, "/orders/") == ("orders", "/v2/")


def test_a_query_is_forwarded_unchanged() -> None:
    table = RouteTable([route("greeter", "/b")])
    assert went(table, "/greeter/x?a=1&b=..//%2e?") == ("greeter", "/b/x?a=1&b=..//%2e?")
    assert went(table, "/greeter?") == ("greeter", "/b?")


def test_the_longest_prefix_wins_in_any_order_of_the_table() -> None:
    for names in (["a", "a/b", "a/b/c"], ["a/b/c", "a", "a/b"]):
        table = RouteTable([route(name) for name in names])
        assert went(table, "/a/b/c/d") == ("a/b/c", "/d")
        assert went(table, "/a/b/x") == ("a/b", "/x")
        assert went(table, "/a/x") == ("a", "/x")
        assert went(table, "/a") == ("a", "/")


def test_a_prefix_matches_whole_segments_case_sensitively() -> None:
    table = RouteTable([route("greeter")])
    for path in ("/greeterx", "/greete", "/Greeter/x", "/x/greeter", "/greeter;v=1/x", "/gr%65eter/x"):
        with pytest.raises(RouteNotFound):
            went(table, path)


def test_the_route_without_a_name_takes_all_other_paths() -> None:
    table = RouteTable([route(""), route("a")])
    assert went(table, "/a/x") == ("a", "/x")
    assert went(table, "/ab/x") == ("", "/ab/x")
    assert went(table, "/") == ("", "/")
    assert went(RouteTable([route("", "/base")]), "/x/y") == ("", "/base/x/y")


def test_the_response_to_an_unknown_path_lists_the_routes() -> None:
    with pytest.raises(RouteNotFound, match=r"the routes are: /a, /b/c$"):
        RouteTable([route("a"), route("b/c")]).match(b"/x")
    for path in (b"/x", b"/zeta/x", b"/alphs"):
        with pytest.raises(RouteNotFound, match=r"the routes are: /alpha, /beta, /zet$"):
            RouteTable([route("zet"), route("alpha"), route("beta")]).match(path)
    many = [route(f"team/svc-{number:02}") for number in range(30)]
    with pytest.raises(RouteNotFound, match=r"of 30 routes some are: /team/svc-\d\d, "):
        RouteTable(many).match(b"/nope")
    with pytest.raises(RouteNotFound, match=r"of 30 routes the nearest are: /team/svc-17, "):
        RouteTable(many).match(b"/team/svc-177")
    with pytest.raises(RouteNotFound, match=r"the routes are: none$"):
        RouteTable([]).match(b"/x")


def nearest(names: Iterable[str], path: str) -> list[str]:
    table = RouteTable(Route(name=name, origin=RUN) for name in names)
    with pytest.raises(RouteNotFound) as refused:
        table.match(path.encode())
    text = str(refused.value)
    assert len(text) < 1_200
    return text.rpartition(": ")[2].split(", ")


@pytest.mark.parametrize(
    "wrong", ["oders-2500", "order-2500", "orders-2500x", "0rders-2500", "ordesr-2500", "ORDERS-2500"]
)
def test_ten_of_many_routes_are_listed_with_the_nearest_first(wrong: str) -> None:
    names = [f"orders-{number}" for number in range(5_000)]
    shown = nearest(names, f"/{wrong}/invoke/Orders/add")
    assert len(shown) == 10
    assert shown[0] == "/orders-2500"


def test_a_route_of_several_segments_is_found_as_well() -> None:
    names = [f"team-{number}/greeter" for number in range(100)]
    assert nearest([*names, "shop/checkout"], "/shop/chekout/discover")[0] == "/shop/checkout"


def test_fewer_routes_are_listed_if_their_names_are_long() -> None:
    shown = nearest([f"{'x' * 300}-{number}" for number in range(50)], "/y")
    assert len(shown) == 3


@given(st.sets(st.text("abc", min_size=1, max_size=6), max_size=40), st.text("abc/", max_size=20))
def test_any_path_without_a_route_gets_distinct_names_of_routes(names: set[str], path: str) -> None:
    table = RouteTable(Route(name=name, origin=RUN) for name in names)
    try:
        table.match(b"/" + path.encode())
    except PathRefused:
        pass
    except RouteNotFound as refused:
        shown = [] if not names else str(refused).rpartition(": ")[2].split(", ")
        assert len(shown) == len(set(shown)) == min(len(names), 10)
        assert {name.removeprefix("/") for name in shown} <= names


def test_two_routes_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two routes are named 'a'"):
        RouteTable([route("a"), route("b"), route("a", "/else")])


@pytest.mark.parametrize(
    "path",
    [
        "", "*", "x", "https://svc/a", "?", "//", "/a//b", "/a/../b", "/a/..", "/a/.", "/a/./b", "/..", "/a/..;x/b",
        "/a/.;/b", "/a/%2e%2e/b", "/a/%2E./b", "/a/b%2fc", "/a/b%2Fc", "/a/b%5cc", "/a/b%5Cc", "/a\\b", "/a/%00",
        "/a b", "/a\tb", "/a\n", "/a#x", "/é", "/a\x00", "/a\x7f",
    ],
)  # fmt: skip
def test_a_path_that_a_proxy_could_normalise_is_refused(path: str) -> None:
    table = RouteTable([route(""), route("a")])
    with pytest.raises(PathRefused, match="not forwarded"):
        table.match(path.encode())


@pytest.mark.parametrize(
    "path", ["/a/...", "/a/..b", "/a/b..", "/a/.well-known/x", "/a/b;c=.", "/a/%20", "/a/b:c@d!$&'()*+,="]
)
def test_a_path_that_only_looks_odd_is_forwarded(path: str) -> None:
    assert went(RouteTable([route("a")]), path) == ("a", path.removeprefix("/a"))


SEGMENT = st.from_regex(r"[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,4}", fullmatch=True) | st.sampled_from(["a", "b", "c"])
NAME = st.lists(SEGMENT, max_size=3).map("/".join)
BASE = st.lists(SEGMENT, max_size=2).map(lambda parts: "".join(f"/{part}" for part in parts))


@given(
    st.dictionaries(NAME, BASE, max_size=8),
    st.lists(SEGMENT, min_size=1, max_size=5),
    st.sampled_from(["", "?", "?q=/a"]),
)
def test_a_match_is_the_longest_name_that_the_path_begins_with(
    bases: dict[str, str], segments: list[str], query: str
) -> None:
    table = RouteTable([route(name, base) for name, base in bases.items()])
    path = "/" + "/".join(segments)
    fitting = [name for name in bases if not name or f"{path}/".startswith(f"/{name}/")]
    if not fitting:
        with pytest.raises(RouteNotFound):
            went(table, path + query)
        return
    best = max(fitting, key=len)
    rest = path.removeprefix(f"/{best}") if best else path
    assert went(table, path + query) == (best, (bases[best] + rest or "/") + query)


@given(st.text("/.%2eEfF5cC;a\\#", max_size=12), BASE.filter(bool))
def test_what_is_forwarded_never_leaves_the_base_path(tail: str, base: str) -> None:
    try:
        _, target = went(RouteTable([route("a", base)]), f"/a/{tail}")
    except PathRefused:
        return
    assert target.startswith(f"{base}/")
    kept: list[str] = []
    for segment in unquote(target).replace("\\", "/").split("/")[1:]:
        name = segment.partition(";")[0]
        if name == "..":
            kept = kept[:-1]
        elif name != ".":
            kept.append(segment)
    assert "/" + "/".join(kept) == unquote(target)


# ---- routes and origins


def test_the_audience_is_the_origin_unless_said_otherwise() -> None:
    assert route("a", "/base").audience == "https://svc.run.app"
    assert Route(name="a", origin=RUN, audience="custom").audience == "custom"


def test_the_authority_omits_a_default_port_and_keeps_brackets() -> None:
    assert route("a").authority == b"svc.run.app"
    assert Origin("https", "svc", 8443).authority == "svc:8443"
    assert Origin("http", "svc", 443).authority == "svc:443"
    assert Origin("http", "::1", 80).authority == "[::1]"
    assert str(Origin("http", "::1", 8080)) == "http://[::1]:8080"


@pytest.mark.parametrize(
    "host",
    ["localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1",
     "::1", "fd00::1", "fe80::1", "fe80::1%eth0", "::ffff:10.0.0.1"],
)  # fmt: skip
def test_a_host_with_a_private_address_is_private(host: str) -> None:
    assert Origin("http", host, 80).is_private


@pytest.mark.parametrize(
    "host",
    ["svc.run.app", "localhost.example.com", "notlocalhost", "8.8.8.8", "172.32.0.1", "2001:4860:4860::8888",
     "::ffff:8.8.8.8", "127.0.0.1.example.com", "2130706433"],
)  # fmt: skip
def test_any_other_host_counts_as_public(host: str) -> None:
    assert not Origin("http", host, 80).is_private


# ---- names and URLs as people write them


@pytest.mark.parametrize("name", ["", "greeter", "a/b/c", "v1.2", "A-b_c~d", "-", "a..b"])
def test_a_route_name_consists_of_whole_segments(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["/", "/a", "a/", "a//b", ".", "..", ".a", "a/../b", "a b", "a%20", "é", "a\n", "a?b", "a:b"]
)
def test_a_route_name_that_no_path_can_begin_with_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="path prefix"):
        check_name(name)


@given(NAME)
def test_a_path_under_any_valid_name_is_matched(name: str) -> None:
    assume(name)
    table = RouteTable([route(check_name(name))])
    assert went(table, f"/{name}/discover") == (name, "/discover")


@pytest.mark.parametrize(
    ("url", "origin", "base_path"),
    [
        ("https://svc.run.app", "https://svc.run.app", ""),
        ("https://svc.run.app/", "https://svc.run.app", ""),
        ("HTTPS://Svc.RUN.app:443/Base/", "https://svc.run.app", "/Base"),
        ("https://svc.run.app:8443/a/b", "https://svc.run.app:8443", "/a/b"),
        ("http://127.0.0.1:80", "http://127.0.0.1", ""),
        ("http://[FD00::1]:8080/x", "http://[fd00::1]:8080", "/x"),
        ("http://my_service:8080", "http://my_service:8080", ""),
        ("https://bücher.example", "https://xn--bcher-kva.example", ""),
        ("https://BÜCHER.example", "https://xn--bcher-kva.example", ""),
        ("https://xn--strae-oqa.example", "https://xn--strae-oqa.example", ""),
        ("https://svc.run.app:", "https://svc.run.app", ""),
    ],
)
def test_a_url_is_split_into_origin_base_path_and_host(url: str, origin: str, base_path: str) -> None:
    parsed, path = parse_upstream(url)
    assert (str(parsed), path) == (origin, base_path)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must begin with https://"),
        ("svc.run.app", "must begin with https://"),
        ("localhost:8080", "must begin with https://"),
        ("ftp://svc.run.app", "must begin with https://"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://svc:port", "is not a URL"),
        ("https://svc:70000", "is not a URL"),
        ("https://[::1", "is not a URL"),
        ("https://svc:0", "port 0"),
        ("https://user@svc", "no user name"),
        ("https://svc/?", "no query"),
        ("https://svc?a=b", "no query"),
        ("https://svc/#part", "no fragment"),
        ("https://svc/a/../b", "dot segments"),
        ("https://a.run.app,b=https://b.run.app", "given one by one"),
        ("https://svc/a//", "doubled"),
        ("https://svc/a%2fb", "encoded slashes"),
        ("https://svc/é", "to be encoded"),
        ("https://s vc", "no blanks"),
        (" https://svc", "no blanks"),
        ("https://svc\n.run.app", "no control characters"),
        ("https://svc..run.app", "neither a host name nor an address"),
        ("https://svc.run.app.", "neither a host name nor an address"),
        ("https://-svc", "neither a host name nor an address"),
        ("https://a%2fb", "neither a host name nor an address"),
        ("https://" + "a" * 64, "neither a host name nor an address"),
        ("https://" + "ä" * 70, "neither a host name nor an address"),
        ("https://[fe80::1%25eth0]", "neither a host name nor an address"),
        ("https://[::1]x", "[::1]x"),  # what follows depends on the Python
        ("https://[v1.a:b]", "neither a host name nor an address"),
        ("https://straße.example", "another one to some programs; write it as DNS has it (xn--…)"),
        ("https://svc。run。app", "as DNS has it"),
        ("https://\uff53vc.run.app", "as DNS has it"),
    ],
)
def test_a_url_that_cannot_be_an_upstream_says_why(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_upstream(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@svc", "https://user:hunter2@[svc", "ftp://user:hunter2@svc", "user:hunter2@svc",
        "https:/u:hunter2@svc", "https://svc/?key=hunter2", "https://svc/#hunter2", "https://user:hunter2@s vc", "https://u:hunter2@svc\uff1a1/",
    ],
)  # fmt: skip
def test_a_refused_url_is_quoted_without_its_secrets(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        parse_upstream(url)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("label", [route("").label, UNMATCHED])
def test_the_metrics_label_for_no_route_is_not_a_valid_route_name(label: str) -> None:
    with pytest.raises(ValueError, match="route name"):
        check_name(label)


TOKEN = "ya29.a0AfH6SMBxK3jD8fQ2pLr7TnV4wY6zB1cE5gH9"


def test_a_url_with_a_credential_in_it_is_refused_and_not_quoted() -> None:
    with pytest.raises(ValueError, match="looks like a credential") as refused:
        parse_upstream(f"https://svc.run.app/{TOKEN}")
    assert TOKEN not in str(refused.value)


def test_a_route_name_with_a_credential_in_it_is_refused_and_not_quoted() -> None:
    with pytest.raises(ValueError, match="which everybody may see") as refused:
        check_name(TOKEN)
    assert TOKEN not in str(refused.value)
