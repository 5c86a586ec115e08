"""The `via` field by which sidecars recognize a request that comes back to them."""

from __future__ import annotations

import pytest

from proxy.errors import LoopDetected
from proxy.relay.via import check, sidecar_name, via_line

NAME = sidecar_name(bytes(8))


def test_a_name_is_made_of_eight_octets() -> None:
    assert sidecar_name(b"\x01\xff" * 4) == b"cloudrun-sidecar-01ff01ff01ff01ff"


def test_a_request_that_has_passed_through_the_same_sidecar_is_refused() -> None:
    with pytest.raises(LoopDetected, match="been here before"):
        check([via_line(b"2.0", NAME)[1]], NAME)


def test_a_request_that_has_passed_through_another_sidecar_is_accepted() -> None:
    check([via_line(b"1.1", sidecar_name(b"another."))[1]], NAME)


def test_a_request_that_has_passed_through_five_sidecars_is_refused() -> None:
    values = [via_line(b"2.0", sidecar_name(bytes([number] * 8)))[1] for number in range(1, 6)]
    check(values[:4], NAME)
    with pytest.raises(LoopDetected, match="passed through 5 sidecars"):
        check(values, NAME)
