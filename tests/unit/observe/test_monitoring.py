"""The examples in config/monitoring: every metric and label that they name is exposed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from proxy.errors import CallerUnverified, RouteNotFound
from proxy.observe.families import FAMILIES, PREFIX
from proxy.routes import UNMATCHED

CONFIG: Final = Path(__file__).parents[3] / "config"
MONITORING: Final = CONFIG / "monitoring"
TARGET_LABELS: Final = frozenset({"instance", "job", "le"})
LABELS: Final = {family.name: frozenset(family.labels) for family in FAMILIES}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    assert set(group) == {"name", "rules"}
    found = group["rules"]
    assert isinstance(found, list)
    return found


def dashboard() -> dict[str, Any]:
    found = json.loads((MONITORING / "dashboard.json").read_text())
    assert isinstance(found, dict)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def families_of(expression: str) -> list[str]:
    """Return the families that an expression names, without the suffixes of a histogram's series."""
    names = re.findall(rf"\b{PREFIX}(\w+)", expression)
    return [re.sub(r"_(bucket|sum|count)$", "", name) if name not in LABELS else name for name in names]


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_every_metric_and_label_of_an_expression_is_exposed(title: str, expression: str) -> None:
    names = families_of(expression)
    assert names
    assert set(names) <= set(LABELS)
    known = frozenset().union(*(LABELS[name] for name in names)) | TARGET_LABELS
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= known
    for matchers in re.findall(r"\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known
    for opening, closing in ("()", "[]", "{}"):
        assert expression.count(opening) == expression.count(closing)


def test_rates_are_taken_of_counters_and_buckets_only() -> None:
    kinds = {family.name: family.kind for family in FAMILIES}
    for _, expression in expressions():
        for name in re.findall(rf"(?:rate|increase)\({PREFIX}(\w+)", expression):
            histogram = re.sub(r"_(bucket|sum|count)$", "", name)
            assert kinds.get(name, kinds.get(histogram)) in ("counter", "histogram")


def test_every_alert_has_a_severity_a_summary_and_a_description_whose_labels_it_keeps() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"CloudRunSidecar[A-Za-z]+", rule["alert"])
        assert re.fullmatch(r"[0-9]+m", rule["for"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}
        expression = rule["expr"]
        grouped = [
            {label.strip() for label in group.split(",")} for group in re.findall(r"\bby \(([^)]*)\)", expression)
        ]
        if matched := re.search(r"/ on \((\w+)\) group_left sum by \(\1\)", expression):
            assert grouped.pop() == {matched[1]}
            assert matched[1] in grouped[0]
        assert all(group == grouped[0] for group in grouped), "operands match by the labels that they keep"
        kept = grouped[0] if grouped else set() if "absent(" in expression else {"instance"}
        used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        assert used <= kept


def test_requests_without_a_route_count_among_no_errors_of_routes() -> None:
    expressions_of = {rule["alert"]: rule["expr"] for rule in rules()}
    assert f'{{route!="{UNMATCHED}",status' in expressions_of["CloudRunSidecarErrors"]
    assert f'{{route="{UNMATCHED}"}}' in expressions_of["CloudRunSidecarRequestsRefused"]


def test_a_refusal_is_alerted_by_its_code_since_most_have_nothing_to_do_with_a_missing_route() -> None:
    (rule,) = (rule for rule in rules() if rule["alert"] == "CloudRunSidecarRequestsRefused")
    assert rule["expr"].startswith(f"sum by (instance, code) (rate({PREFIX}request_failures_total")
    assert "{{ $labels.code }}" in rule["annotations"]["summary"]
    assert {RouteNotFound.code, CallerUnverified.code} <= set(
        re.findall(r"`([a-z-]+)`", rule["annotations"]["description"])
    )


def test_a_sidecar_that_does_not_run_is_alerted() -> None:
    assert [rule["expr"] for rule in rules() if rule["alert"] == "CloudRunSidecarAbsent"] == [
        f"absent({PREFIX}build_info)"
    ]


def test_exchanges_that_the_service_resets_count_among_the_errors_of_their_route() -> None:
    # They have no status of their own: 200 after a head, else "reset", as those that a client has cancelled.
    (expression,) = (rule["expr"] for rule in rules() if rule["alert"] == "CloudRunSidecarErrors")
    assert f'{PREFIX}stream_resets_total{{by="upstream",code!="REFUSED_STREAM"}}' in expression


def fires(alert: str, **samples: float) -> bool:
    """Return whether the condition of an alert of arithmetic alone holds for these samples of one sidecar."""
    (expression,) = (rule["expr"] for rule in rules() if rule["alert"] == alert)
    given = {f"{PREFIX}{name}": value for name, value in samples.items()}
    return bool(eval(" ".join(expression.split()), {"__builtins__": {}}, given))


def test_settings_that_would_not_start_are_alerted() -> None:
    assert fires("CloudRunSidecarSettingsRefused", settings_last_reload_successful=0)
    assert not fires("CloudRunSidecarSettingsRefused", settings_last_reload_successful=1)


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_a_client_that_fills_the_queue_of_its_worker_is_alerted_however_many_workers_there_are(workers: int) -> None:
    for part, expected in ((0.17, False), (0.26, True), (0.85, True)):
        samples = {"downstream_queued_bytes_largest": part * 2**28, "queued_bytes_limit": workers * 2**28}
        assert fires("CloudRunSidecarClientReadsSlowly", workers=workers, **samples) == expected


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_a_queue_from_which_requests_are_refused_is_alerted_if_one_worker_alone_has_it(workers: int) -> None:
    # With 60 to 150 clients that read slowly, 0.66 to 0.88 was measured while exchanges were ended at the limit.
    for part, expected in ((0.4, False), (0.66, True), (1.0, True)):
        samples = {"worker_queued_bytes_largest": part * 2**28, "queued_bytes_limit": workers * 2**28}
        assert fires("CloudRunSidecarQueueFull", workers=workers, **samples) == expected


def test_panels_of_the_dashboard_have_numbers_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_pod_monitoring_selects_the_pods_and_the_port_of_the_example_deployment() -> None:
    monitoring = yaml.safe_load((MONITORING / "pod-monitoring.yaml").read_text())
    documents = yaml.safe_load_all((CONFIG / "kubernetes" / "shared" / "sidecar.yaml").read_text())
    (deployment,) = (document for document in documents if document["kind"] == "Deployment")
    template = deployment["spec"]["template"]
    assert (monitoring["apiVersion"], monitoring["kind"]) == ("monitoring.googleapis.com/v1", "PodMonitoring")
    assert monitoring["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    ports = [port["name"] for container in template["spec"]["containers"] for port in container["ports"]]
    (endpoint,) = monitoring["spec"]["endpoints"]
    assert endpoint["port"] in ports
    assert endpoint["path"] == "/metrics"
