"""Who may call a service, and what its container gets to know about the caller."""

from __future__ import annotations

import pytest

from proxy.emulator import GCLOUD_CLIENT, CloudRun, Google, Verdict, front_end
from tests.support.emulated import AUDIENCE, CALLER, Clock
from tests.support.front_end import ADDED, Application, bearer, call, claims

SERVERLESS_AUTHORIZATION, AUTHORIZATION = b"x-serverless-authorization", b"authorization"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("email", "audience", "status"),
    [
        ("person@example.com", GCLOUD_CLIENT, 204),
        ("person@example.com", "764086051850.apps.googleusercontent.com", 401),
        ("stranger@example.com", GCLOUD_CLIENT, 403),
        (CALLER, GCLOUD_CLIENT, 401),
        (CALLER, AUDIENCE, 204),
    ],
)
async def test_a_user_may_call_with_a_token_for_gcloud(
    cloud_run: CloudRun, google: Google, email: str, audience: str, status: int
) -> None:
    cloud_run.invokers.add("person@example.com")
    token, _ = google.id_token(email, audience)
    sent = await call(cloud_run, [(AUTHORIZATION, bearer(token))])
    assert sent[0]["status"] == status


@pytest.mark.asyncio
async def test_the_id_token_of_a_disabled_account_is_refused_unless_set_otherwise(
    cloud_run: CloudRun, google: Google
) -> None:
    token, _ = google.id_token(CALLER, AUDIENCE)
    google.disabled.add(CALLER)
    assert (await call(cloud_run, [(AUTHORIZATION, bearer(token))]))[0]["status"] == 401
    assert cloud_run.streams[-1].verdict is Verdict.DISABLED
    google.accept_disabled_accounts = True
    assert (await call(cloud_run, [(AUTHORIZATION, bearer(token))]))[0]["status"] == 204


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("invoker", "email", "status"),
    [
        ("user:person@example.com", "person@example.com", 204),
        (f"serviceAccount:{CALLER}", CALLER, 204),
        ("group:team@example.com", "person@example.com", 204),
        ("group:team@example.com", CALLER, 403),
        ("group:other@example.com", "person@example.com", 403),
        ("domain:example.com", "person@example.com", 204),
        ("domain:emulated.iam.gserviceaccount.com", CALLER, 403),
        ("allAuthenticatedUsers", "stranger@example.com", 204),
        ("allAuthenticatedUsers", None, 403),
        ("allUsers", None, 204),
    ],
)
async def test_invokers_are_members_as_in_iam(
    cloud_run: CloudRun, google: Google, invoker: str, email: str | None, status: int
) -> None:
    google.groups["team@example.com"] = {"person@example.com"}
    cloud_run.invokers = {invoker}
    token = None if email is None else google.id_token(email, AUDIENCE)[0]
    sent = await call(cloud_run, [] if token is None else [(AUTHORIZATION, bearer(token))])
    assert sent[0]["status"] == status


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
OTHER = "105445aa7843bc8bf206b12000100000"
PARENT = ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-00")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([("X-Cloud-Trace-Context", f"{OTHER}/1;o=1")], (OTHER, "01")),
        ([("x-cloud-trace-context", f"{OTHER}/1;o=0")], (OTHER, "00")),
        ([("x-cloud-trace-context", OTHER)], (OTHER, "01")),
        ([PARENT, ("x-cloud-trace-context", f"{OTHER}/1;o=1")], (TRACE, "00")),
        ([PARENT, PARENT, ("x-cloud-trace-context", f"{OTHER}/1;o=1")], (OTHER, "01")),
        ([("traceparent", "00-" + "0" * 32 + "-00f067aa0ba902b7-01")], None),
        ([("traceparent", f"00-{TRACE}-{'0' * 16}-01")], None),
        ([("x-cloud-trace-context", f"{OTHER}/x;o=1")], None),
        ([("x-cloud-trace-context", "0" * 32)], None),
    ],
)
def test_the_trace_of_a_caller_is_continued(fields: list[tuple[str, str]], expected: tuple[str, str] | None) -> None:
    trace = front_end.Trace.of((name.encode(), value.encode()) for name, value in fields)
    if expected is None:
        assert (trace.trace_id not in (TRACE, OTHER, "0" * 32), trace.flags) == (True, "01")
    else:
        assert (trace.trace_id, trace.flags) == expected


@pytest.mark.asyncio
async def test_what_a_caller_says_about_itself_is_replaced(
    cloud_run: CloudRun, application: Application, google: Google, clock: Clock
) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    fields = [
        (SERVERLESS_AUTHORIZATION, bearer(google.sign(claims(clock)))),
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"x-forwarded-host", b"evil.example"),
        (b"forwarded", b"for=10.0.0.1"),
        (b"x-goog-authenticated-user-email", b"accounts.google.com:boss@example.com"),
        (b"traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode()),
        (b"tracestate", b"a=1"),
    ]
    (start, _) = await call(cloud_run, fields)
    names = [name for name, _ in application.scopes[0]["headers"]]
    assert names == [SERVERLESS_AUTHORIZATION, b"tracestate", *ADDED]
    seen = dict(application.scopes[0]["headers"])
    assert seen[b"x-forwarded-for"] == b"127.0.0.1"
    assert seen[b"x-forwarded-proto"] == b"https"
    assert seen[b"forwarded"] == b'for="127.0.0.1";proto=https'
    _, trace_id, span_id, _ = seen[b"traceparent"].decode().split("-")
    assert trace_id == trace
    assert span_id != "00f067aa0ba902b7"
    assert seen[b"x-cloud-trace-context"] == f"{trace}/{int(span_id, 16)};o=1".encode()
    answered = dict(start["headers"])
    assert answered[b"x-cloud-trace-context"] == f"{trace};o=1".encode()
    assert answered[b"server"] == b"Google Frontend"
    assert answered[b"date"] == b"Fri, 15 Jan 2027 08:00:00 GMT"
    assert answered[b"alt-svc"].startswith(b"h3=")
