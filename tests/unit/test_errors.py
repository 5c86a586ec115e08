from __future__ import annotations

import inspect
import re

import pytest

from proxy import errors
from proxy.errors import Failure, Internal, RequestRefused, SidecarFailure, TokenFailure, UpstreamFailure, all_failures

FAILURES = all_failures()
SOURCES = (RequestRefused, SidecarFailure, TokenFailure, UpstreamFailure)

each_failure = pytest.mark.parametrize("kind", FAILURES, ids=lambda kind: kind.code)


def test_all_failures_are_sorted_by_distinct_codes() -> None:
    codes = [kind.code for kind in FAILURES]
    assert codes == sorted(set(codes))


def test_every_exported_class_is_a_failure_or_a_source() -> None:
    exported = {getattr(errors, name) for name in errors.__all__}
    classes = {each for each in exported if inspect.isclass(each)}
    assert classes == {Failure, *SOURCES, *FAILURES}


@each_failure
def test_a_failure_has_one_source(kind: type[Failure]) -> None:
    assert sum(issubclass(kind, source) for source in SOURCES) == 1


@each_failure
def test_the_code_of_a_failure_is_its_name(kind: type[Failure]) -> None:
    words = re.findall(r"[A-Z][a-z0-9]+", kind.__name__)
    assert kind.code == "-".join(words).lower()


@each_failure
def test_a_failure_is_documented_with_its_meaning_and_its_remedy(kind: type[Failure]) -> None:
    meaning, remedy = inspect.cleandoc(kind.__dict__["__doc__"]).split("\n\n")
    assert meaning.endswith(".")
    assert re.fullmatch(r"Remedy: .+\.", remedy, re.DOTALL)


@each_failure
def test_a_refused_request_is_never_transient(kind: type[Failure]) -> None:
    assert not (issubclass(kind, RequestRefused) and kind.transient)


@each_failure
def test_the_severity_is_error_if_something_on_this_side_must_be_repaired(kind: type[Failure]) -> None:
    by_request = issubclass(kind, RequestRefused)
    assert kind("sentence").severity == ("warning" if by_request or kind.transient else "error")


@pytest.mark.parametrize(
    ("failure", "severity"),
    [
        (errors.RouteNotFound("x"), "warning"),
        (errors.TokenTimeout("x"), "warning"),
        (errors.UpstreamReset("x"), "warning"),
        (errors.ImpersonationDenied("x"), "error"),
        (errors.UpstreamTlsFailed("x"), "error"),
        (Internal("x"), "error"),
    ],
)
def test_severities_of_some_failures(failure: Failure, severity: str) -> None:
    assert failure.severity == severity
