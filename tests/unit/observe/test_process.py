"""The metrics of the process are those that Prometheus' own client has."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxy.observe.exposition import Exposition
from proxy.observe.families import PROCESS_FAMILIES
from proxy.observe.metrics import Metrics
from proxy.observe.process import process_metrics
from tests.support.live import view_of


def values(exposition: str) -> dict[tuple[str, str], float]:
    """Return the value of each sample, by type and name."""
    return {
        (family.type, sample.name): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


def test_they_have_the_names_types_and_values_of_prometheus_own_client() -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    expected = values(generate_latest(registry).decode())
    assert len(expected) == 6
    exposed = "".join(Exposition(view_of(Metrics())).pieces(process_metrics()))
    own = {key: value for key, value in values(exposed).items() if key[1].startswith("process_")}
    assert own == pytest.approx(expected, rel=0.2)


def test_there_is_a_family_for_each() -> None:
    assert list(process_metrics()) == [family.name for family in PROCESS_FAMILIES]
