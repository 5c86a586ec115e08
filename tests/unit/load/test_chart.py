from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from tests.load.chart import PANELS, chart
from tests.load.figures import Summary
from tests.load.targets import COMPILED, PORTABLE

LABELS = {COMPILED: "sidecar (nghttp2)", PORTABLE: "sidecar (h2)", "envoy": "Envoy & Co", "plain": "Hypercorn + h2"}
SVG = "{http://www.w3.org/2000/svg}"


def summaries(**values: float) -> dict[str, dict[str, Summary]]:
    made: dict[str, dict[str, Summary]] = {}
    for panel in PANELS:
        for key, value in values.items():
            contender = made.setdefault(panel.workload, {})
            before = contender[key].values if key in contender else {}
            contender[key] = Summary(values={**before, panel.metric: value}, spread={}, rounds=1)
    return made


def drawn(found: dict[str, dict[str, Summary]]) -> ElementTree.Element:
    return ElementTree.fromstring(chart(found, LABELS, title="Ours < theirs", notes=["one", "two"]))


def bars(root: ElementTree.Element) -> list[tuple[str, float]]:
    shapes = [path for path in root.iter(f"{SVG}path") if path.get("class") != "cut"]
    return [(path.get("class", ""), float(re.findall(r" h([0-9.]+) ", path.get("d", ""))[0])) for path in shapes]


FIGURES = {COMPILED: 20.0, PORTABLE: 70.0, "envoy": 50.0, "plain": 100.0}


def test_the_chart_is_well_formed_svg_with_everything_inside() -> None:
    root = drawn(summaries(**FIGURES))
    width, height = float(root.get("width", "0")), float(root.get("height", "0"))
    for text in root.iter(f"{SVG}text"):
        assert 0 < float(text.get("x", "-1")) < width
        assert 0 < float(text.get("y", "-1")) < height
    said = [text.text for text in root.iter(f"{SVG}text")]
    assert "Envoy & Co" in said
    assert said[-2:] == ["one", "two"]


def test_each_panel_has_a_bar_of_proportional_length_for_each_contender() -> None:
    found = bars(drawn(summaries(**FIGURES)))
    assert len(found) == len(PANELS) * len(FIGURES)
    panel = found[: len(FIGURES)]
    assert [shade for shade, _ in panel] == ["first", "second", "bar", "bar"]
    lengths = [length for _, length in panel]
    assert lengths[0] < lengths[2] < lengths[1] < lengths[3]
    assert lengths[0] / lengths[3] == pytest.approx(0.2, abs=0.02)


def test_a_bar_that_dwarfs_the_others_is_cut() -> None:
    root = drawn(summaries(**{**FIGURES, "plain": 1000.0}))
    cuts = [path for path in root.iter(f"{SVG}path") if path.get("class") == "cut"]
    assert len(cuts) == len(PANELS)
    assert bars(root)[1][1] > bars(root)[3][1] * 0.7


def test_a_panel_without_figures_is_left_out() -> None:
    found = summaries(**FIGURES)
    del found["memory"]
    titles = [text.text for text in drawn(found).iter(f"{SVG}text") if text.get("class") == "head"]
    assert titles == [panel.title for panel in PANELS if panel.workload != "memory"]


def test_a_chart_without_figures_is_still_an_image() -> None:
    assert not bars(drawn({}))


def test_the_chart_has_colours_for_dark_pages() -> None:
    assert "prefers-color-scheme: dark" in chart({}, LABELS, title="t", notes=[])
