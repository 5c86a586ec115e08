from __future__ import annotations

import json

from tests.load.figures import Sample, summarize
from tests.load.report import document, shown, table, verdicts
from tests.load.targets import COMPILED, judge
from tests.load.workloads import KEYS, Kind, Plan

LABELS = {COMPILED: "sidecar (nghttp2)", "envoy": "Envoy", "nghttpx": "nghttpx", "direct": "no proxy"}
UNARY = Kind(key="unary", title="POST 1 KiB", columns=("cpu_us", "rate", "p50_us", "busy"))


def samples() -> list[Sample]:
    figures = {COMPILED: (22.1, 41_000.0, 1100.0, 99.0), "envoy": (65.0, 18_000.0, 2500.0, 60.0)}
    made = [
        Sample(
            workload="unary",
            contender=contender,
            round=turn,
            values=dict(zip(UNARY.columns, values, strict=True)),
        )
        for contender, values in figures.items()
        for turn in range(3)
    ]
    void = Sample(workload="unary", contender="nghttpx", round=0, void="2 of 9 requests did not succeed (2 failed)")
    return [
        *made,
        void,
        Sample(workload="unary", contender="direct", round=0, values={"rate": 60_000.0, "p50_us": 90.0}),
    ]


def test_values_have_three_digits_and_a_unit() -> None:
    assert shown("cpu_us", 22.13) == "22.1 µs"
    assert shown("cpu_us", 2.0) == "2.00 µs"
    assert shown("cpu_us", 442.4) == "442 µs"
    assert shown("p99_us", 1234.0) == "1.23 ms"
    assert shown("rate", 41_234.5) == "41,234/s"
    assert shown("stream_kib", 4.58) == "4.58 KiB"
    assert shown("refreshes", 9.0) == "9"


def test_values_side_by_side_have_one_unit() -> None:
    assert shown("p50_us", 34.0, [34.0, 1970.0]) == "0.034 ms"


def test_the_table_compares_each_contender_with_the_sidecar() -> None:
    lines = table(UNARY, summarize(samples())["unary"], LABELS, COMPILED).splitlines()
    assert lines[0] == "POST 1 KiB (median of 3)"
    envoy = next(line for line in lines if "Envoy" in line)
    assert envoy.split() == ["Envoy", "65.0", "µs", "0", "%", "0.34", "≥", "18,000/s", "2.50", "ms", "60.0", "%"]
    ours = next(line for line in lines if "nghttp2" in line)
    assert "1.00" in ours
    assert "≥" not in ours
    assert any(line.split()[:2] == ["no", "proxy"] for line in lines)


def test_a_void_figure_is_named_with_its_reason_and_has_no_number() -> None:
    lines = table(UNARY, summarize(samples())["unary"], LABELS, COMPILED).splitlines()
    assert lines[-1] == "  nghttpx: void, 2 of 9 requests did not succeed (2 failed)"


def test_the_targets_are_listed_with_marks() -> None:
    text = verdicts(judge(summarize(samples())), LABELS)
    met = next(line for line in text.splitlines() if "✔" in line)
    assert met.split()[-2:] == ["0.34", "0.35"]
    assert "not measured" in text


def test_the_report_is_json_with_all_figures() -> None:
    summaries = summarize(samples())
    whole = document(
        about={"at": "now"}, kinds=[UNARY], summaries=summaries, judged=judge(summaries), samples=samples()
    )
    read = json.loads(json.dumps(whole))
    assert read["workloads"]["unary"]["contenders"]["envoy"]["median"]["cpu_us"] == 65.0
    assert read["workloads"]["unary"]["contenders"]["nghttpx"]["void"]
    assert next(target["met"] for target in read["targets"] if target["against"] == "envoy") is True
    assert len(read["samples"]) == len(samples())


def test_workloads_have_distinct_names_and_quick_is_less() -> None:
    assert len(set(KEYS)) == len(KEYS)
    assert Plan.quick().rounds * Plan.quick().seconds < Plan.full().rounds * Plan.full().seconds
    assert Plan.full().memory_connections * Plan.full().memory_streams == 10_000
