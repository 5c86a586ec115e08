from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import errors
from proxy.errors import ERROR_FIELD, Answer, Failure, Internal, Permanent, Transient, answer, leaves

LEAVES = leaves()

RESTATE_REPEATS_DISCOVERY_ON = {408, 429, 500, 502, 503, 504}


def documented() -> dict[str, tuple[int, int, tuple[int, int] | None, bool]]:
    """The table in the module's docstring: invocation, discovery, retry-after and whether it passes, by leaf."""
    assert errors.__doc__ is not None
    table: dict[str, tuple[int, int, tuple[int, int] | None, bool]] = {}
    for line in errors.__doc__.splitlines():
        row = re.fullmatch(r"(`.*`) +(\d{3}) +(\d{3}) +(–|(\d+)–(\d+) s) +(yes|no)", line)
        if row:
            span = (int(row[5]), int(row[6])) if row[5] else None
            for leaf in re.findall(r"`(\w+)`", row[1]):
                table[leaf] = (int(row[2]), int(row[3]), span, row[7] == "yes")
    return table


def field(told: Answer, name: bytes) -> bytes | None:
    return dict(told.fields).get(name)


def test_the_docstring_lists_every_leaf_and_nothing_else() -> None:
    assert set(documented()) == {leaf.__name__ for leaf in LEAVES}


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.code)
def test_a_leaf_is_as_the_docstring_says(leaf: type[Failure]) -> None:
    assert documented()[leaf.__name__] == (
        leaf.status,
        leaf.discovery_status,
        leaf.retry_after_seconds,
        leaf.transient,
    )


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.code)
def test_a_leaf_is_exported_and_its_code_is_its_name(leaf: type[Failure]) -> None:
    words = re.findall(r"[A-Z][a-z0-9]+", leaf.__name__)
    assert leaf.code == "-".join(words).lower()
    assert leaf.__name__ in errors.__all__


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.code)
def test_an_invocation_is_told_status_code_and_remedy(leaf: type[Failure]) -> None:
    told = answer(leaf("mend the thing"), discovery=False, random_fraction=0.5)
    assert told.status == leaf.status
    assert field(told, ERROR_FIELD) == leaf.code.encode()
    assert told.body == b"cloudrun-sidecar: mend the thing\n"
    assert field(told, b"content-length") == str(len(told.body)).encode()
    assert field(told, b"content-type") == b"text/plain; charset=utf-8"


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.code)
def test_a_discovery_is_told_the_status_that_restate_reads_rightly(leaf: type[Failure]) -> None:
    told = answer(leaf("mend the thing"), discovery=True, random_fraction=0.5)
    assert told.status == leaf.discovery_status
    if leaf.transient:
        assert told.status in RESTATE_REPEATS_DISCOVERY_ON
    elif issubclass(leaf, Permanent):
        assert told.status not in RESTATE_REPEATS_DISCOVERY_ON


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.code)
def test_retry_after_is_there_exactly_where_work_can_wait(leaf: type[Failure]) -> None:
    told = answer(leaf("x"), discovery=False, random_fraction=0.5)
    waits = issubclass(leaf, Transient | Permanent)
    assert (field(told, b"retry-after") is not None) is waits
    assert (told.status == 503) is waits


def test_every_leaf_has_a_docstring_of_its_own_and_a_distinct_code() -> None:
    assert len({leaf.code for leaf in LEAVES}) == len(LEAVES)
    assert [leaf.code for leaf in LEAVES] == sorted(leaf.code for leaf in LEAVES)
    assert all("__doc__" in vars(leaf) and leaf.__doc__ for leaf in LEAVES)


def test_no_field_of_an_answer_is_a_pseudo_field_or_has_capitals() -> None:
    for leaf in LEAVES:
        for name, _ in answer(leaf("x"), discovery=False, random_fraction=0.0).fields:
            assert re.fullmatch(rb"[a-z-]+", name)


@given(st.floats(min_value=0, max_value=1, exclude_max=True))
def test_chance_spreads_retry_after_within_its_bounds(random_fraction: float) -> None:
    for leaf in LEAVES:
        seconds = field(answer(leaf("x"), discovery=False, random_fraction=random_fraction), b"retry-after")
        if leaf.retry_after_seconds is not None:
            assert seconds is not None
            assert leaf.retry_after_seconds[0] <= int(seconds) <= leaf.retry_after_seconds[1]


def test_both_bounds_of_retry_after_are_reached() -> None:
    told = {
        field(answer(errors.Draining("x"), discovery=False, random_fraction=c / 10), b"retry-after") for c in range(10)
    }
    assert told == {b"1", b"2", b"3", b"4", b"5"}


def test_a_failure_without_words_is_told_by_its_code() -> None:
    assert answer(errors.Internal(), discovery=False, random_fraction=0.0).body == b"cloudrun-sidecar: internal\n"


@given(st.text(st.characters(codec=None)))
def test_the_body_is_always_one_line_whatever_the_failure_says(text: str) -> None:
    told = answer(errors.Internal(text), discovery=True, random_fraction=0.0)
    assert told.body.count(b"\n") == 1
    assert told.body.endswith(b"\n")
    assert b"\r" not in told.body
    assert field(told, b"content-length") == str(len(told.body)).encode()
    told.body.decode("utf-8")


@pytest.mark.parametrize("kind", leaves())
def test_the_log_says_error_where_somebody_has_to_mend_something(kind: type[Failure]) -> None:
    assert kind.severity == ("error" if issubclass(kind, Permanent | Internal) else "warning")
