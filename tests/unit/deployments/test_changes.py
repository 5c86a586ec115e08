from __future__ import annotations

from proxy.deployments.changes import Changes, changed_calls, compare
from proxy.deployments.records import Deployment, Handler, Registered, Service

URL = "http://greeter.run.app/path"


def service(name: str, *handlers: Handler, revision: int = 1, deployment: str = "dp_new") -> Service:
    return Service(name=name, kind="Service", revision=revision, deployment=deployment, handlers=handlers)


def compared(after: list[Service], before: list[Service], had: tuple[str, ...] | None = None) -> Changes:
    replaced = None
    if had is not None:
        services = tuple((name, 1) for name in had)
        replaced = Deployment(
            id="dp_new", url="", headers={}, services=services, is_http1=False, has_own_authentication=False
        )
    registered = Registered(id="dp_new", is_new=had is None, services=tuple(after))
    return compare(registered, {one.name: one for one in before}, replaced, {"dp_old": "http://old/"})


def test_a_service_that_restate_does_not_have_is_added_with_all_its_handlers() -> None:
    changes = compared([service("Greeter", Handler("greet"))], [service("Other", Handler("x"))])
    (added,) = changes.added
    assert (added.service.name, added.before, added.moved_from) == ("Greeter", None, "")
    assert [(one.handler.name, one.change) for one in added.handlers] == [("greet", "same")]
    assert (changes.updated, changes.removed) == ((), ())


def test_each_handler_of_an_updated_service_says_what_happens_to_it() -> None:
    old = service("Greeter", Handler("a", "x"), Handler("gone"), Handler("same"), deployment="dp_old")
    new = service("Greeter", Handler("a", "y"), Handler("new"), Handler("same"), revision=2)
    (updated,) = compared([new], [old]).updated
    assert updated.handlers == (
        (Handler("a", "y"), "changed", Handler("a", "x")),
        (Handler("gone"), "removed", None),
        (Handler("new"), "added", None),
        (Handler("same"), "same", None),
    )
    assert (updated.before, updated.moved_from) == (old, "http://old/")


def test_an_unknown_deployment_is_named_by_its_identifier() -> None:
    (updated,) = compared([service("Greeter")], [service("Greeter", deployment="dp_lost")]).updated
    assert updated.moved_from == "dp_lost"


def test_services_that_an_overwritten_deployment_lost_are_removed() -> None:
    changes = compared([service("Greeter")], [service("Greeter"), service("Counter")], had=("Greeter", "Counter"))
    assert changes.removed == ("Counter",)
    assert changes.updated[0].moved_from == ""


def known(headers: dict[str, str] | None = None, *, http1: bool = False, own: bool = False) -> Deployment:
    return Deployment(
        id="dp_1", url=URL, headers=headers or {}, services=(), is_http1=http1, has_own_authentication=own
    )


def test_headers_that_differ_are_named_without_their_values() -> None:
    phrases = changed_calls(
        known({"a": "1", "b": "s3cret", "c": "3"}), URL, {"b": "other", "c": "3", "d": "4"}, http1=False
    )
    assert phrases == ["a is removed", "b is changed", "d is added"]
    pasted = known({"eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJo.c2ln": ""})
    assert changed_calls(pasted, URL, {}, http1=False) == ["[not shown] is removed"]


def test_the_version_of_http_and_restates_own_authentication_are_changes() -> None:
    assert changed_calls(known(), URL, {}, http1=True) == ["HTTP/1.1 is used"]
    assert changed_calls(known(http1=True), URL, {}, http1=False) == ["HTTP/1.1 is no longer used"]
    assert changed_calls(known(http1=True, own=True), URL, {}, http1=True) == [
        "Restate's own Google authentication is removed"
    ]


def test_a_scheme_that_differs_is_a_change() -> None:
    assert changed_calls(known(), "https://greeter.run.app/path", {}, http1=False) == [
        "https:// is used instead of http://"
    ]
