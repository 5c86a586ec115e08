"""Which requests are on open routes, and which authentication a deployment gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import DeploymentRefused, PathRefused, RouteNotFound
from proxy.routes import AllowLists, Match, OpenMatch, OpenRoutes, Origin, Route, RouteTable
from proxy.routes.open_routes import named_route_refusal
from tests.support.pasted import PASTED, told_of

PROJECT = "123456789012.europe-west1.run.app"
GREETER, BILLING, CUSTOM = f"greeter-{PROJECT}", f"billing-{PROJECT}", "orders.example.com"
INVOKER, RELAY = "invoker@p.iam.gserviceaccount.com", "relay@p.iam.gserviceaccount.com"
LISTS = AllowLists(
    (f"*-{PROJECT}", CUSTOM), (INVOKER, RELAY), (f"{CUSTOM}=https://orders", f"{GREETER}=https://greeter.example.com")
)
OPEN = OpenRoutes(LISTS)
LOCAL = b"127.0.0.1:9081"


def named(name: str) -> Route:
    return Route(name=name, origin=Origin("https", "named.example", 443))


def table(*names: str, lists: AllowLists = LISTS) -> RouteTable:
    return RouteTable([named(name) for name in names], lists)


def fields(**words: str) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(
        (f"x-cloudrun-sidecar-{word.replace('_', '-')}".encode(), value.encode()) for word, value in words.items()
    )


def refusal(host: str = GREETER, *lines: tuple[bytes, bytes]) -> str:
    with pytest.raises(DeploymentRefused) as refused:
        OPEN.route(host, lines, "")
    return str(refused.value)


# ---- which host


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (f"/{GREETER}/discover", "/discover"),
        (f"/{GREETER}/base/invoke/Greeter/greet?x=/y", "/base/invoke/Greeter/greet?x=/y"),
        (f"/{GREETER}", "/"),
        (f"/{GREETER}/", "/"),
        (f"/{GREETER}?x", "/?x"),
        (f"/{GREETER.upper()}/discover", "/discover"),
    ],
)
def test_the_first_segment_of_a_path_may_be_the_host(path: str, asked: str) -> None:
    assert table().find(LOCAL, path.encode()) == OpenMatch(GREETER, asked.encode())


def test_the_authority_may_be_the_host_and_has_precedence() -> None:
    path = f"/{BILLING}/discover".encode()
    assert table("").find(GREETER.encode(), path) == OpenMatch(GREETER, path)
    assert table(BILLING).find(GREETER.upper().encode(), path) == OpenMatch(GREETER, path)


def test_a_named_route_has_precedence_over_a_host_in_the_path_and_the_default_route_has_not() -> None:
    path = f"/{GREETER}/discover".encode()
    found = table(GREETER, "").find(LOCAL, path)
    assert isinstance(found, Match)
    assert found.route.name == GREETER
    assert table("").find(LOCAL, path) == OpenMatch(GREETER, b"/discover")
    rest = table("").find(LOCAL, b"/x/discover")
    assert isinstance(rest, Match)
    assert rest.path == b"/x/discover"


def test_without_hosts_there_are_no_open_routes() -> None:
    for lists in (AllowLists(), AllowLists((), (INVOKER,))):
        assert table(lists=lists).open_routes is None
        with pytest.raises(RouteNotFound):
            table(lists=lists).find(GREETER.encode(), f"/{GREETER}/discover".encode())


@pytest.mark.parametrize(
    "path",
    [
        "*",
        "/../discover",
        f"/x/../{GREETER}/discover",
        f"//{GREETER}/discover",
        f"/{GREETER}/..;/x",
        f"/{GREETER}%2fdiscover",
        f"/{GREETER.replace('.', '%2e')}/discover",
        f"/{GREETER}\\discover",
    ],
)
@pytest.mark.parametrize("authority", [LOCAL, GREETER.encode()])
def test_a_path_that_could_mean_another_one_is_refused(authority: bytes, path: str) -> None:
    with pytest.raises(PathRefused):
        table("").find(authority, path.encode())


@pytest.mark.parametrize(
    "host",
    [
        "evil-999999999999.europe-west1.run.app",
        "evil.europe-west1.run.app",
        f"{GREETER}.",
        f"{GREETER}:443",
        f"{GREETER}:80",
        f"{GREETER}:9081",
        f"evil@{GREETER}",
        f"{GREETER}@evil.run.app",
        f"evil.{GREETER}",
        f"{GREETER}%00.run.app",
        f"gr%65eter-{PROJECT}",
        f"x-{PROJECT}.run.app",
    ],
)
@pytest.mark.parametrize("rest", [(), ("",)], ids=["alone", "with-a-route-for-the-rest"])
def test_a_host_of_cloud_run_that_is_not_allowed_is_refused_and_the_list_is_named(
    host: str, rest: tuple[str, ...]
) -> None:
    for authority, path in ((host.encode(), b"/discover"), (LOCAL, f"/{host}/discover".encode())):
        with pytest.raises((DeploymentRefused, PathRefused)) as refused:
            table(*rest).find(authority, path)
        if isinstance(refused.value, DeploymentRefused):
            assert "is not in the list hosts of [deployments]" in str(refused.value)


def test_another_spelling_of_an_allowed_host_is_refused_and_the_right_one_named() -> None:
    for host in (f"{GREETER}.", f"{GREETER}:443"):
        with pytest.raises(DeploymentRefused, match=rf"write it as {GREETER}$"):
            table().find(host.encode(), b"/discover")


@pytest.mark.parametrize("host", ["evil.example.com", "169.254.169.254", "metadata.google.internal", "10.0.0.1:80"])
def test_another_host_in_the_path_is_refused_and_the_list_is_named(host: str) -> None:
    with pytest.raises(DeploymentRefused, match="is not in the list hosts"):
        table("x").find(LOCAL, f"/{host}/discover".encode())


def test_another_authority_is_that_of_the_sidecar_itself() -> None:
    for authority in (LOCAL, b"sidecar.restate.svc.cluster.local:9081", b"", b"\xff"):
        found = table("x").find(authority, b"/x/discover")
        assert isinstance(found, Match)
        with pytest.raises(RouteNotFound):
            table("x").find(authority, b"/y/discover")


@pytest.mark.parametrize(
    "authority",
    ["search.example.com", "search.example.com:8080", "metadata.google.internal", "169.254.169.254", "[fd00::1]:80"],
)
def test_without_a_route_an_authority_that_may_be_a_host_is_named_with_the_list(authority: str) -> None:
    with pytest.raises(RouteNotFound) as refused:
        table("x").find(authority.encode(), b"/discover")
    assert str(refused.value) == (
        f"no route for this path; the routes are: /x; and '{authority}', if that is the host of a deployment, "
        "is not in the list hosts of [deployments]"
    )


@pytest.mark.parametrize("authority", [b"", LOCAL, b"[::1]:9081", b"localhost:9081", b"sidecar.localhost"])
def test_without_a_route_this_machine_is_not_taken_for_the_host_of_a_deployment(authority: bytes) -> None:
    with pytest.raises(RouteNotFound, match=r"the routes are: /x$"):
        table("x").find(authority, b"/discover")


def test_a_host_of_the_list_with_a_port_is_told_apart_from_one_that_is_not_listed() -> None:
    lists = AllowLists(("search.example.com",))
    with pytest.raises(RouteNotFound, match=r"hosts of \[deployments\]; write it as search\.example\.com$"):
        RouteTable([], lists).find(b"search.example.com:443", b"/discover")


@given(st.binary(max_size=80))
def test_only_an_allowed_host_in_either_case_is_a_host(text: bytes) -> None:
    host = OPEN.host(text)
    assert host is None or (host.encode() == text.lower() and LISTS.allows_host(host))


@given(st.text(alphabet="-.abx129:@%*", max_size=30))
def test_no_prefix_makes_a_name_of_another_project_match(text: str) -> None:
    host = OPEN.host(f"{text}-{PROJECT}".encode())
    assert host is None or host.partition(".")[2] == "europe-west1.run.app"


# ---- which authentication


def test_without_headers_a_deployment_is_called_with_the_ambient_identity_for_its_own_origin() -> None:
    route = OPEN.route(GREETER, (), "shared")
    assert (route.name, str(route.origin), route.label) == (f"https://{GREETER}", f"https://{GREETER}", "shared")
    assert (route.signed, route.audience, route.impersonate, route.delegates) == (
        True, f"https://{GREETER}", None, ()
    )  # fmt: skip


def test_the_headers_choose_account_delegates_and_audience() -> None:
    lines = fields(
        gcp_impersonate_service_account=INVOKER,
        gcp_delegates=f"{RELAY} , {INVOKER}",
        gcp_audience="https://greeter.example.com",
        gcp_id_token="True",
    )
    route = OPEN.route(GREETER, lines, "")
    assert (route.impersonate, route.delegates) == (INVOKER, (RELAY, INVOKER))
    assert (route.audience, route.signed) == ("https://greeter.example.com", True)
    assert OPEN.route(GREETER, lines[::-1], "") == route
    assert OPEN.allows(route)


def test_a_deployment_may_use_no_token_and_may_name_its_default_audience() -> None:
    assert not OPEN.route(GREETER, fields(gcp_id_token="false"), "").signed
    assert OPEN.route(GREETER, fields(gcp_audience=f"https://{GREETER}"), "") == OPEN.route(GREETER, (), "")


@pytest.mark.parametrize(
    "audience",
    [
        f"https://{BILLING}",
        f"https://{GREETER}/",
        f"https://{GREETER}:443",
        f"https://{GREETER.upper()}",
        f"http://{GREETER}",
        "https://orders",
        "https://greeter.example.com/",
        "https://iap.example.com",
        "32555940559.apps.googleusercontent.com",
    ],
)
def test_no_other_audience_is_allowed_not_even_that_of_another_allowed_host(audience: str) -> None:
    said = refusal(GREETER, *fields(gcp_audience=audience))
    assert "is not in the list audiences of [deployments]" in said
    assert f"{GREETER}={audience}" in said


def test_an_audience_of_the_list_is_refused_for_another_host() -> None:
    assert OPEN.route(CUSTOM, fields(gcp_audience="https://orders"), "").audience == "https://orders"
    for host, audience in (
        (BILLING, "https://orders"),
        (GREETER, "https://orders"),
        (CUSTOM, "https://greeter.example.com"),
    ):
        refusal(host, *fields(gcp_audience=audience))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"gcp_impersonate_service_account": "owner@p.iam.gserviceaccount.com"}, "is not in the list accounts"),
        ({"gcp_impersonate_service_account": INVOKER.upper()}, "is not in the list accounts"),
        ({"gcp_impersonate_service_account": "invoker"}, "is not the e-mail of a service account"),
        ({"gcp_impersonate_service_account": f"{INVOKER}, {RELAY}"}, "is not the e-mail of a service account"),
        ({"gcp_impersonate_service_account": f"{INVOKER}:generateIdToken?x"}, "is not the e-mail"),
        *(
            ({"gcp_impersonate_service_account": copied}, f"write {INVOKER} alone")
            for copied in (
                f"serviceAccount:{INVOKER}",
                f"mailto:{INVOKER}",
                f"projects/-/serviceAccounts/{INVOKER}",
                f"//iam.googleapis.com/projects/my-project/serviceAccounts/{INVOKER}",
                f"serviceAccounts/{INVOKER}",
            )
        ),
        ({"gcp_impersonate_service_account": f"user:{INVOKER}"}, "is not the e-mail"),
        ({"gcp_impersonate_service_account": ""}, "is empty"),
        ({"gcp_delegates": RELAY}, "set gcp_impersonate_service_account as well"),
        (
            {"gcp_impersonate_service_account": INVOKER, "gcp_delegates": "owner@p.iam.gserviceaccount.com"},
            "is not in the list accounts",
        ),
        ({"gcp_impersonate_service_account": INVOKER, "gcp_delegates": f"{RELAY},"}, "is not the e-mail"),
        ({"gcp_id_token": "no"}, "must be true or false"),
        ({"gcp_id_token": "false", "gcp_audience": f"https://{GREETER}"}, "contradicts gcp_id_token = false"),
        ({"gcp_id_token": "false", "gcp_impersonate_service_account": INVOKER}, "contradicts gcp_id_token = false"),
        ({"gcp_audience": "a b"}, "visible ASCII"),
        ({"gcp_audience": "ä"}, "visible ASCII"),
        ({"gcp_audiense": "x"}, "is not a header of the sidecar"),
        ({"impersonate": "x"}, "is not a header of the sidecar"),
    ],
)
def test_a_wrong_header_is_refused(words: dict[str, str], reason: str) -> None:
    assert reason in refusal(GREETER, *fields(**words))


def test_a_repeated_header_is_refused_even_with_equal_values() -> None:
    audience = fields(gcp_audience=f"https://{GREETER}")
    assert "occurs twice" in refusal(GREETER, *audience, *audience)
    assert "occurs twice" in refusal(GREETER, *audience, *fields(gcp_audience=f"https://{BILLING}"))


def test_a_spelling_with_underscores_is_refused() -> None:
    assert "is not a header" in refusal(GREETER, (b"x_cloudrun_sidecar_gcp_audience", b"x"))


def test_all_problems_are_reported_at_once() -> None:
    said = refusal(
        BILLING,
        *fields(
            gcp_impersonate_service_account="owner@p.iam.gserviceaccount.com",
            gcp_delegates="x",
            gcp_audience="https://orders",
            gcp_wish="y",
        ),
    )
    assert [part in said for part in (BILLING, "owner@p", "'x'", "https://orders", "gcp-wish")] == [True] * 5


def test_a_secret_in_a_header_is_not_repeated() -> None:
    secret = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJhdWQiOiJ4In0.c2lnbmF0dXJlLW9mLWEtdG9rZW4"
    for word in ("gcp_impersonate_service_account", "gcp_audience", "gcp_delegates", "gcp_id_token"):
        assert secret not in refusal(GREETER, *fields(**{word: secret}))


@pytest.mark.parametrize(
    "lists",
    [
        AllowLists((CUSTOM,), LISTS.accounts, LISTS.audiences),
        AllowLists(LISTS.hosts, (INVOKER,), LISTS.audiences),
        AllowLists(LISTS.hosts, (RELAY,), LISTS.audiences),
        AllowLists(LISTS.hosts, LISTS.accounts),
    ],
    ids=["host", "delegate", "account", "audience"],
)
def test_shorter_lists_no_longer_allow_a_removed_host_account_or_audience(lists: AllowLists) -> None:
    lines = fields(
        gcp_impersonate_service_account=INVOKER, gcp_delegates=RELAY, gcp_audience="https://greeter.example.com"
    )
    assert not OpenRoutes(lists).allows(OPEN.route(GREETER, lines, ""))


def test_on_a_named_route_the_refusal_names_the_headers() -> None:
    said = named_route_refusal(fields(gcp_audience="x", gcp_id_token="false"))
    assert "x-cloudrun-sidecar-gcp-audience" in said
    assert "x-cloudrun-sidecar-gcp-id-token" in said


@pytest.mark.parametrize("pasted", PASTED.values(), ids=PASTED)
def test_no_refusal_quotes_a_secret_that_was_pasted_into_a_header(pasted: str) -> None:
    for name in ("gcp_audience", "gcp_impersonate_service_account", "gcp_delegates", "gcp_id_token"):
        assert told_of(pasted, refusal(GREETER, *fields(**{name: pasted}))) == []
