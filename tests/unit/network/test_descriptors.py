"""The limit of open files, and the part of it that connections may not use."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from proxy.network.descriptors import (
    descriptors_refusal,
    is_reserved,
    raise_descriptor_limit,
    take_first_descriptor_limit,
)


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    take_first_descriptor_limit(None)


def test_the_soft_limit_is_raised() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard - 1, hard))
    raise_descriptor_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


@pytest.mark.parametrize(
    ("limit", "to_service", "first_reserved"),
    [(1024, False, 992), (128, False, 96), (100, False, 75), (1024, True, 1008), (128, True, 112), (100, True, 88)],
)
def test_services_get_half_of_the_last_descriptors_and_clients_none(
    limit: int, to_service: bool, first_reserved: int
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert not is_reserved(first_reserved - 1, to_service=to_service)
    assert is_reserved(first_reserved, to_service=to_service)


@pytest.mark.parametrize(("limit", "refused"), [(31, True), (32, False)])
def test_a_sidecar_needs_some_descriptors(limit: int, refused: bool) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    assert bool(descriptors_refusal()) is refused
