from __future__ import annotations

import pytest

from proxy.deployments.target import (
    Authentication,
    Target,
    TargetRefused,
    checked_sidecar_url,
    find_target,
    leads_to_sidecar,
    own_lines,
    read_headers,
    sidecar_url,
    split_url,
    unknown_route,
)
from proxy.routes import AllowLists, Route, RouteTable, parse_upstream
from tests.support.pasted import PASTED, told_of

SIDECAR = "http://127.0.0.1:9081"
HOST = "greeter-123456789012.europe-west1.run.app"
ONE = "one@p.iam.gserviceaccount.com"
IMPERSONATE = "x-cloudrun-sidecar-gcp-impersonate-service-account"
AUDIENCE = "x-cloudrun-sidecar-gcp-audience"
LISTS = AllowLists(hosts=("*-123456789012.europe-west1.run.app", "greeter.example.com"), accounts=(ONE,))


def route(name: str, url: str = "https://svc.run.app/base") -> Route:
    origin, base_path = parse_upstream(url)
    return Route(name=name, origin=origin, base_path=base_path)


NAMED = RouteTable([route("greeter"), route("team/a"), route("v1.2")])
BOTH = RouteTable([route("greeter"), route("team/a"), route("v1.2")], LISTS)
OPEN = RouteTable([], LISTS)


def found(text: str, table: RouteTable = BOTH, sidecar: str = SIDECAR, **words: object) -> Target:
    headers = words.pop("headers", ())
    assert isinstance(headers, tuple)
    return find_target(text, table, sidecar, Authentication(**words), headers)  # type: ignore[arg-type]


def refusal(text: str, table: RouteTable = BOTH, sidecar: str = SIDECAR, **words: object) -> str:
    with pytest.raises(TargetRefused) as caught:
        found(text, table, sidecar, **words)
    return str(caught.value)


@pytest.mark.parametrize("table", [NAMED, BOTH])
@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("greeter", "greeter", f"{SIDECAR}/greeter"),
        ("/greeter", "greeter", f"{SIDECAR}/greeter"),
        ("/team/a/", "team/a", f"{SIDECAR}/team/a"),
        ("v1.2", "v1.2", f"{SIDECAR}/v1.2"),
        (f"{SIDECAR}/greeter", "greeter", f"{SIDECAR}/greeter"),
        (f"{SIDECAR}/greeter/", "greeter", f"{SIDECAR}/greeter/"),
        ("http://localhost:9081/team/a", "team/a", f"{SIDECAR}/team/a"),
        ("127.0.0.1:9081/greeter/sub", "greeter", f"{SIDECAR}/greeter/sub"),
    ],
)
def test_a_name_and_its_url_are_the_named_route(table: RouteTable, text: str, name: str, url: str) -> None:
    target = found(text, table)
    assert (target.route.name, target.url, target.authority, target.headers) == (name, url, "", ())
    assert target.path == url.removeprefix(SIDECAR).rstrip("/")


def test_the_route_for_all_paths_is_a_slash() -> None:
    table = RouteTable([route("")])
    assert (found("/", table).url, found("/", table).path) == (f"{SIDECAR}/", "")
    assert found(SIDECAR, table).url == f"{SIDECAR}/"


@pytest.mark.parametrize("table", [BOTH, OPEN])
@pytest.mark.parametrize(
    "text",
    [
        HOST, f"/{HOST}/", HOST.upper(), f"https://{HOST}", f"https://{HOST.upper()}:443/", f"{SIDECAR}/{HOST}",
        f"localhost:9081/{HOST}",
    ],
)  # fmt: skip
def test_a_host_is_an_open_route_by_path(table: RouteTable, text: str) -> None:
    target = found(text, table, impersonate=ONE)
    assert target.url.rstrip("/") == f"{SIDECAR}/{HOST}"
    assert (target.path, target.authority) == (f"/{HOST}", "")
    assert (target.route.is_open, target.route.impersonate) == (True, ONE)
    assert target.headers == ((IMPERSONATE, ONE),)


@pytest.mark.parametrize("text", [f"{HOST.upper()}/a/b", f"https://{HOST}/a/b/", f"{SIDECAR}/{HOST}/a/b"])
def test_a_path_below_the_host_is_kept(text: str) -> None:
    assert found(text).url.rstrip("/") == f"{SIDECAR}/{HOST}/a/b"


@pytest.mark.parametrize(("text", "path"), [(f"http://{HOST}", ""), (f"http://{HOST}:80/a/", "/a")])
def test_http_and_a_host_is_an_open_route_by_authority(text: str, path: str) -> None:
    target = found(text)
    assert target.url == f"http://{HOST}{'/a/' if path else '/'}"
    assert (target.path, target.authority, target.route.origin.host) == (path, HOST, HOST)


def test_all_words_of_the_authentication_become_headers() -> None:
    delegate = "two@p.iam.gserviceaccount.com"
    lists = AllowLists(hosts=(HOST,), accounts=(ONE, delegate), audiences=(f"{HOST}=custom",))
    target = found(
        HOST,
        RouteTable([], lists),
        impersonate=ONE,
        audience="custom",
        delegates=(delegate, ONE),
        headers=(("x-a", "b"),),
    )
    assert dict(target.headers) == {
        "x-a": "b",
        IMPERSONATE: ONE,
        AUDIENCE: "custom",
        "x-cloudrun-sidecar-gcp-delegates": f"{delegate},{ONE}",
    }
    assert target.route.delegates == (delegate, ONE)
    assert found(HOST, id_token=False).headers == (("x-cloudrun-sidecar-gcp-id-token", "false"),)
    assert found(HOST, id_token=True).headers == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("greter", "there is no route /greter; the routes are: /greeter, /team/a, /v1.2; did you mean /greeter?"),
        ("other.example.com", "'other.example.com' is not in the list hosts of [deployments]"),
        ("https://evil.run.app/x", "'evil.run.app' is not in the list hosts of [deployments]"),
        ("https://svc.run.app/base", "the route /greeter has this URL: register it by its name"),
        ("http://evil.run.app", "neither at the sidecar, which Restate reaches at http://127.0.0.1:9081"),
        ("http://127.0.0.1:9082/greeter", "is not at the sidecar, which Restate reaches at http://127.0.0.1:9081"),
        (f"https://{HOST}:8443", "services of Cloud Run have no port"),
        (f"{SIDECAR}/nothing", "no route for this path"),
        (f"{SIDECAR}/evil.run.app", "'evil.run.app' is not in the list hosts of [deployments]"),
        (f"{HOST}/a/../b", "this path is not forwarded"),
        (f"{HOST}/é", "this path is not forwarded"),
        (f"{HOST}/日本", "this path is not forwarded"),
        (f"https://{HOST}/日本", "this path is not forwarded"),
        (f"http://{HOST}/日本", "this path is not forwarded"),
        (f"{SIDECAR}/greeter/日本", "this path is not forwarded"),
        (f"{SIDECAR}/greeter/\udcff", "this path is not forwarded"),
        (f"{SIDECAR}/greeter//", "this path is not forwarded"),  # Restate asks it for /greeter//discover.
        (f"http://{HOST}//", "this path is not forwarded"),
        ("ftp://greeter", "the URL must be http://… or https://… with a host, not 'ftp://greeter'"),
        ("http://host:port", "the URL must be"),
        ("https://ada@greeter.example.com", "must have neither a user name nor ? nor #"),
        (f"https://{HOST}?x=1", "must have neither a user name nor ? nor #"),
        (f"{HOST}?x=1", "must have neither a user name nor ? nor #"),
        (f"/{HOST}/a?x", "must have neither a user name nor ? nor #"),
    ],
)
def test_an_invalid_deployment_is_refused_with_the_reason(text: str, words: str) -> None:
    assert words in refusal(text)


def test_without_lists_only_named_routes_are_found() -> None:
    assert "there is no route /greeter.example.com" in refusal("greeter.example.com", NAMED)
    assert "is not in the list hosts of [deployments]" in refusal(f"https://{HOST}", NAMED)
    assert "neither at the sidecar" in refusal(f"http://{HOST}", NAMED)


def test_a_host_outside_the_lists_is_not_served_by_the_default_route() -> None:
    table = RouteTable([route("")], LISTS)
    assert "is not in the list hosts" in refusal("https://other.example.com", table)
    assert "'other.example.com' is not in the list hosts" in refusal("other.example.com", table)


@pytest.mark.parametrize("text", [f"{HOST}]", "[evil.run.app/x"])
def test_a_bracket_too_much_is_a_host_outside_the_lists(text: str) -> None:
    words = refusal(text, RouteTable([route("")], LISTS))
    assert words.endswith("(not shown) is not in the list hosts of [deployments]")


def test_a_named_route_wins_over_a_host_in_the_path_and_has_no_headers() -> None:
    table = RouteTable([route("greeter.example.com")], LISTS)
    assert found("greeter.example.com", table).route.is_open is False
    assert "is not in the list hosts" in refusal("https://greeter.example.com", table)


def test_headers_are_checked_as_the_sidecar_checks_them() -> None:
    assert "two@p.example is not in the list accounts" in refusal(HOST, impersonate="two@p.example")
    other = "https://other-123456789012.europe-west1.run.app"
    assert "is not in the list audiences" in refusal(HOST, audience=other)
    assert "is not a header of the sidecar" in refusal(HOST, headers=(("x-cloudrun-sidecar-gcp-audiense", "x"),))
    assert "register it without 'x-cloudrun-sidecar-gcp-audience'" in refusal("greeter", headers=((AUDIENCE, "x"),))
    assert "leave the --gcp-… flags out" in refusal("greeter", audience="x")
    assert "is given as a flag as well" in refusal(HOST, impersonate=ONE, headers=((IMPERSONATE, ONE),))


@pytest.mark.parametrize("name", ["Connection", "keep-alive", "transfer-encoding", "te", "Host", "content-length"])
def test_headers_with_which_restate_sends_no_request_are_refused(name: str) -> None:
    with pytest.raises(TargetRefused, match=f"--extra-header {name.lower()}: an HTTP/2 client sets this itself"):
        read_headers(["x-team=payments", f"{name}=5"])


def test_extra_headers_are_parsed_and_all_their_mistakes_reported_without_values() -> None:
    assert read_headers(["X-Team = payments ", "x-a=b=c", "x-empty="]) == (
        ("x-team", "payments"),
        ("x-a", "b=c"),
        ("x-empty", ""),
    )
    with pytest.raises(TargetRefused) as caught:
        read_headers(["x-a", "=b", "x b=c", "x-a=\n", "x-c=1", "X-C=2", "x-serverless-authorization=Bearer s3cret"])
    assert len(caught.value.problems) == 6
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("pasted", PASTED.values(), ids=PASTED)
def test_no_refusal_quotes_a_secret(pasted: str) -> None:
    for text in (pasted, f"https://{pasted}", f"http://{pasted}", f"https://{pasted}@x.run.app", f"{HOST}/{pasted}"):
        for table in (NAMED, BOTH, OPEN):
            said = ""
            try:
                found(text, table)
            except TargetRefused as exc:
                said = str(exc)
            assert told_of(pasted, said) == []
    with pytest.raises(TargetRefused) as caught:
        read_headers([pasted, f"{pasted}=x", f"x-a={pasted}\n"])
    assert told_of(pasted, str(caught.value)) == []


def test_headers_for_the_sidecar_are_recognised_in_any_spelling() -> None:
    lines = own_lines([("X-Cloudrun-Sidecar-Gcp-Audience", "a"), ("x-a", "b"), ("x_cloudrun_sidecar_x", "c")])
    assert lines == ((b"x-cloudrun-sidecar-gcp-audience", b"a"), (b"x_cloudrun_sidecar_x", b"c"))


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        (["127.0.0.1:9081"], "http://127.0.0.1:9081"),
        (["unix:/run/s.sock", "0.0.0.0:8000"], "http://127.0.0.1:8000"),
        (["[::]:9081"], "http://[::1]:9081"),
        (["127.0.0.1:0", "unix:/run/s.sock"], None),
    ],
)
def test_the_sidecar_is_at_the_first_address_with_a_port(listen: list[str], url: str | None) -> None:
    assert sidecar_url(listen) == url


def test_the_url_of_the_sidecar_has_no_path() -> None:
    assert checked_sidecar_url("http://sidecar.example:9081/") == "http://sidecar.example:9081"
    for wrong in ("http://sidecar.example/x", "https://sidecar.example/x", "sidecar", "ftp://sidecar", "http://a@b"):
        with pytest.raises(ValueError, match="must"):
            checked_sidecar_url(wrong)


def test_a_sidecar_that_listens_with_tls_is_registered_by_https() -> None:
    sidecar = checked_sidecar_url("https://sidecar.example:9443/")
    assert found("greeter", sidecar=sidecar).url == "https://sidecar.example:9443/greeter"
    assert found(HOST, sidecar=sidecar).url == f"https://sidecar.example:9443/{HOST}"
    assert found(f"{sidecar}/greeter", sidecar=sidecar).route.name == "greeter"


@pytest.mark.parametrize(
    ("url", "sidecar", "same"),
    [
        ("http://localhost:9081/x", SIDECAR, True),
        ("http://[::1]:9081", SIDECAR, True),
        ("http://127.0.0.1:9080", SIDECAR, False),
        ("https://127.0.0.1:9081", SIDECAR, False),
        ("http://Sidecar.example", "http://sidecar.example:80", True),
        ("arn:aws:lambda", SIDECAR, False),
        ("http://[", SIDECAR, False),
    ],
)
def test_names_of_this_machine_are_the_same_host(url: str, sidecar: str, same: bool) -> None:
    assert leads_to_sidecar(url, sidecar) is same


def test_only_valid_http_urls_are_split() -> None:
    assert split_url("http://a:0") is None
    assert split_url("http://") is None
    assert split_url("http://restate..svc:9070") is None
    parts = split_url("https://a/b")
    assert parts is not None
    assert parts.path == "/b"


def test_at_most_twenty_routes_are_listed() -> None:
    assert " and 5 more" in unknown_route("x", [f"r{number}" for number in range(25)])
