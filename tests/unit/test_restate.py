from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import errors, restate
from proxy.errors import ERROR_FIELD, Failure, RequestRefused, all_failures
from proxy.restate import (
    DISCOVERY_ACCEPT,
    REPLY_RULES,
    LocalReply,
    ReplyRule,
    RequestKind,
    classify,
    is_manifest,
    local_reply,
    manifest_services,
    missing_retry_after,
    stops_work,
)

RESTATE_REPEATS_DISCOVERY_ON = {408, 429, 500, 502, 503, 504}

each_failure = pytest.mark.parametrize("kind", all_failures(), ids=lambda kind: kind.code)
each_kind = pytest.mark.parametrize("request_kind", RequestKind, ids=lambda kind: kind.label)


def documented_rules() -> dict[str, ReplyRule]:
    """Return the table of local replies in the module's docstring, by name of failure."""
    assert restate.__doc__ is not None
    table: dict[str, ReplyRule] = {}
    for line in restate.__doc__.splitlines():
        row = re.fullmatch(r"(`.*`) +(\d{3}) +(\d{3}) +(–|(\d+)–(\d+) s)", line)
        if row:
            seconds = (int(row[5]), int(row[6])) if row[5] else None
            for failure in re.findall(r"`(\w+)`", row[1]):
                assert failure not in table
                table[failure] = ReplyRule(int(row[2]), int(row[3]), seconds)
    return table


def field(reply: LocalReply, name: bytes) -> bytes | None:
    return dict(reply.fields).get(name)


# ---- what a request is


@pytest.mark.parametrize("path", [b"/discover", b"/greeter/discover", b"/a/b/discover", b"/greeter/discover?x=/y"])
def test_a_get_of_discover_under_any_prefix_is_a_discovery(path: bytes) -> None:
    assert classify(b"GET", path) is RequestKind.DISCOVERY


@pytest.mark.parametrize(
    "path",
    [
        b"/invoke/Greeter/greet",
        b"/greeter/invoke/Greeter/greet",
        b"/a/b/invoke/G/h?x=/y",
        b"/greeter/invoke/G/discover",
    ],
)
def test_a_post_of_invoke_service_handler_under_any_prefix_is_an_invocation(path: bytes) -> None:
    assert classify(b"POST", path) is RequestKind.INVOCATION


@pytest.mark.parametrize(
    ("method", "path"),
    [
        (b"POST", b"/greeter/discover"),
        (b"HEAD", b"/greeter/discover"),
        (b"GET", b"/greeter/discovery"),
        (b"GET", b"/greeter/rediscover"),
        (b"GET", b"/greeter/discover/"),
        (b"GET", b"/greeter/health?next=/discover"),
        (b"GET", b"/greeter/invoke/Greeter/greet"),
        (b"POST", b"/greeter/invoke/Greeter"),
        (b"POST", b"/greeter/invoke/Greeter/"),
        (b"POST", b"/greeter/invoke//greet"),
        (b"POST", b"/greeter/reinvoke/Greeter/greet"),
        (b"POST", b"/greeter/health?next=/invoke/Greeter/greet"),
        (b"POST", b"/greeter/invoke/Greeter/greet/more"),
        (b"POST", b"/greeter/serdes/1"),
        (b"GET", b""),
        (b"POST", b""),
    ],
)
def test_anything_else_is_neither(method: bytes, path: bytes) -> None:
    assert classify(method, path) is RequestKind.OTHER


def test_only_a_discovery_has_a_person_waiting_for_it() -> None:
    assert [kind for kind in RequestKind if kind.interactive] == [RequestKind.DISCOVERY]


# ---- what a failure is answered with


def test_the_table_has_exactly_one_row_for_each_failure() -> None:
    assert set(REPLY_RULES) == set(all_failures())


def test_the_table_in_the_docstring_is_that_of_the_code() -> None:
    assert documented_rules() == {kind.__name__: rule for kind, rule in REPLY_RULES.items()}


@each_kind
@each_failure
def test_a_local_reply_has_status_code_and_sentence(kind: type[Failure], request_kind: RequestKind) -> None:
    rule = documented_rules()[kind.__name__]
    reply = local_reply(kind("set the url"), request_kind, 0.5)
    assert reply.status == (rule.discovery_status if request_kind is RequestKind.DISCOVERY else rule.status)
    assert field(reply, ERROR_FIELD) == kind.code.encode()
    assert reply.body == b"cloudrun-sidecar: set the url\n"
    assert field(reply, b"content-length") == str(len(reply.body)).encode()
    assert field(reply, b"content-type") == b"text/plain; charset=utf-8"


def test_a_subclass_of_a_kind_is_answered_like_its_kind() -> None:
    class FileMissing(errors.CredentialsInvalid):
        pass

    for kind in RequestKind:
        assert local_reply(FileMissing("x"), kind, 0.5) == local_reply(errors.CredentialsInvalid("x"), kind, 0.5)


@each_failure
def test_restate_repeats_a_discovery_that_met_a_transient_failure_and_no_other(kind: type[Failure]) -> None:
    status = local_reply(kind("x"), RequestKind.DISCOVERY, 0.5).status
    if kind.transient:
        assert status in RESTATE_REPEATS_DISCOVERY_ON
    elif kind is not errors.Internal:
        assert status not in RESTATE_REPEATS_DISCOVERY_ON


@each_failure
def test_an_invocation_waits_without_using_up_an_attempt_unless_the_request_or_the_sidecar_is_wrong(
    kind: type[Failure],
) -> None:
    reply = local_reply(kind("x"), RequestKind.INVOCATION, 0.5)
    waits = not issubclass(kind, RequestRefused | errors.Internal | errors.UpstreamReset)
    # The deployment, or a list of the settings, can be corrected while the work waits.
    waits = waits or kind is errors.DeploymentRefused
    assert (field(reply, b"retry-after") is not None) is waits
    assert (reply.status == 503) is waits


@each_failure
def test_field_names_of_a_local_reply_are_lower_case_without_pseudo_fields(kind: type[Failure]) -> None:
    for name, _ in local_reply(kind("x"), RequestKind.OTHER, 0.0).fields:
        assert re.fullmatch(rb"[a-z-]+", name)


@given(st.sampled_from(all_failures()), st.floats(min_value=0, max_value=1, exclude_max=True))
def test_retry_after_stays_within_its_bounds(kind: type[Failure], random_fraction: float) -> None:
    seconds = field(local_reply(kind("x"), RequestKind.INVOCATION, random_fraction), b"retry-after")
    bounds = documented_rules()[kind.__name__].retry_after_seconds
    assert (seconds is None) is (bounds is None)
    if bounds is not None and seconds is not None:
        assert bounds[0] <= int(seconds) <= bounds[1]


def test_retry_after_reaches_both_bounds() -> None:
    failure = errors.Draining("x")
    values = {field(local_reply(failure, RequestKind.OTHER, tenths / 10), b"retry-after") for tenths in range(10)}
    assert values == {b"1", b"2", b"3", b"4", b"5"}


def test_a_failure_without_a_sentence_is_answered_with_its_code() -> None:
    assert local_reply(errors.Internal(), RequestKind.OTHER, 0.0).body == b"cloudrun-sidecar: internal\n"


@given(st.text(st.characters(codec=None)))
def test_the_body_is_always_one_line(text: str) -> None:
    reply = local_reply(errors.Internal(text), RequestKind.DISCOVERY, 0.0)
    assert reply.body.count(b"\n") == 1
    assert reply.body.endswith(b"\n")
    assert b"\r" not in reply.body
    assert field(reply, b"content-length") == str(len(reply.body)).encode()
    reply.body.decode("utf-8")


# ---- what an upstream's answer needs


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_added_to_429_and_503_that_have_none(status: int) -> None:
    head = [(b":status", str(status).encode(), False)]
    added = {missing_retry_after(status, head, tenths / 10) for tenths in range(10)}
    assert added == {(b"retry-after", seconds, False) for seconds in (b"1", b"2", b"3", b"4", b"5")}
    assert missing_retry_after(status, [*head, (b"retry-after", b"7", False)], 0.0) is None


@pytest.mark.parametrize("status", [200, 302, 403, 500, 502, 504])
def test_retry_after_is_added_to_no_other_status(status: int) -> None:
    assert missing_retry_after(status, [(b":status", str(status).encode(), False)], 0.0) is None


@pytest.mark.parametrize(
    ("status", "expected"), [(200, False), (302, True), (400, False), (403, True), (500, False), (503, True)]
)
def test_some_error_statuses_stop_work(status: int, expected: bool) -> None:
    assert stops_work(status) is expected


# ---- how a route is tried


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


def test_each_accepted_content_type_is_a_manifest() -> None:
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
def test_invalid_content_is_refused_as_a_manifest_and_not_quoted(body: bytes) -> None:
    with pytest.raises(ValueError, match="no manifest") as caught:
        manifest_services(body)
    assert caught.value.__cause__ is None
