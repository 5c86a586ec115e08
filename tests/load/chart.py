"""The comparison as an SVG, for a README in light and in dark. Pure.

Small bars in six panels. Everything is less is better; the sidecar is coloured, the others are grey. Colours are
classes, which a media query turns dark, and the picture brings its own background, so it is legible on any page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from tests.load.figures import Summary
from tests.load.report import shown
from tests.load.targets import COMPILED, PORTABLE

__all__ = ["PANELS", "Panel", "chart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One metric at one workload."""

    title: str
    subtitle: str
    workload: str
    metric: str


PANELS: Final = (
    Panel(title="CPU per request", subtitle="POST 1 KiB, 50 in flight", workload="unary", metric="cpu_us"),
    Panel(title="Latency added", subtitle="POST 1 KiB, one in flight, p50", workload="single", metric="added_p50_us"),
    Panel(title="CPU per MiB up", subtitle="request bodies of 16 MiB", workload="upload", metric="cpu_us"),
    Panel(title="CPU per MiB down", subtitle="response bodies of 16 MiB", workload="download", metric="cpu_us"),
    Panel(title="Memory idle", subtitle="resident, one worker", workload="memory", metric="rss_mib"),
    Panel(title="Memory per stream", subtitle="resident, open and idle", workload="memory", metric="stream_kib"),
)

_COLUMNS: Final = 2
_MARGIN: Final = 28
_GAP: Final = 36
_PANEL_WIDTH: Final = 402
_LABEL_WIDTH: Final = 138
_VALUE_WIDTH: Final = 72
_BAR_WIDTH: Final = _PANEL_WIDTH - _LABEL_WIDTH - _VALUE_WIDTH
_ROW: Final = 22
_BAR: Final = 14
_HEAD: Final = 48
_TITLE: Final = 74
_CUT: Final = 3.0

_STYLE: Final = """\
  .page { fill: #ffffff; stroke: #d8dee4 }
  text { font-family: ui-sans-serif, system-ui, -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif }
  .title { font-size: 19px; font-weight: 600; fill: #1f2328 }
  .note { font-size: 12px; fill: #59636e }
  .head { font-size: 14px; font-weight: 600; fill: #1f2328 }
  .label { font-size: 12.5px; fill: #59636e }
  .value { font-size: 12.5px; fill: #59636e; font-variant-numeric: tabular-nums }
  .ours { fill: #1f2328; font-weight: 600 }
  .bar { fill: #c3cad2 }
  .first { fill: #0b7f6b }
  .second { fill: #7cc4b5 }
  .rule { stroke: #d8dee4 }
  .cut { stroke: #ffffff; stroke-width: 3 }
  @media (prefers-color-scheme: dark) {
    .page { fill: #0d1117; stroke: #30363d }
    .title, .head, .ours { fill: #f0f6fc }
    .note, .label, .value { fill: #9198a1 }
    .ours { fill: #f0f6fc }
    .bar { fill: #3d444d }
    .first { fill: #2dd4b0 }
    .second { fill: #1b7d6b }
    .rule { stroke: #30363d }
    .cut { stroke: #0d1117 }
  }
"""


def chart(
    summaries: Mapping[str, Mapping[str, Summary]], labels: Mapping[str, str], *, title: str, notes: Sequence[str]
) -> str:
    """Return the SVG; `notes` are the lines below. Panels without a figure, and bars without one, are left out."""
    panels = [(panel, bars) for panel in PANELS if (bars := _bars(panel, summaries, labels))]
    parts, top = [], _TITLE
    for start in range(0, len(panels), _COLUMNS):
        line = panels[start : start + _COLUMNS]
        for column, (panel, bars) in enumerate(line):
            parts += _panel(panel, bars, _MARGIN + column * (_PANEL_WIDTH + _GAP), top)
        top += _HEAD + _ROW * max(len(bars) for _, bars in line) + 22
    width, height = 2 * _MARGIN + _COLUMNS * _PANEL_WIDTH + (_COLUMNS - 1) * _GAP, top + 18 * len(notes) + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_STYLE}</style>",
            f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
            _text("title", _MARGIN, 36, title),
            _text("note", _MARGIN, 56, "Shorter is better."),
            *parts,
            *(_text("note", _MARGIN, top + 4 + 18 * line, note) for line, note in enumerate(notes)),
            "</svg>",
            "",
        ]
    )


def _bars(
    panel: Panel, summaries: Mapping[str, Mapping[str, Summary]], labels: Mapping[str, str]
) -> list[tuple[str, str, float]]:
    """Return key, label and value of each contender in a panel, in the order of `labels`."""
    found = summaries.get(panel.workload, {})
    return [
        (key, label, found[key].values[panel.metric])
        for key, label in labels.items()
        if key in found and panel.metric in found[key].values
    ]


def _panel(panel: Panel, bars: Sequence[tuple[str, str, float]], left: int, top: int) -> list[str]:
    parts = [_text("head", left, top + 16, panel.title), _text("note", left, top + 33, panel.subtitle)]
    start = left + _LABEL_WIDTH
    parts.append(
        f'<line class="rule" x1="{start - 0.5}" y1="{top + _HEAD - 4}" x2="{start - 0.5}" '
        f'y2="{top + _HEAD + _ROW * len(bars)}"/>'
    )
    values = [value for _, _, value in bars]
    full = _scale(values)
    for row, (key, label, value) in enumerate(bars):
        y = top + _HEAD + row * _ROW
        length = max(1.0, min(1.0, max(0.0, value) / full) * _BAR_WIDTH)
        shade = _shade(key, row)
        ours = " ours" if shade != "bar" else ""
        parts.append(_text(f"label{ours}", start - 10, y + 12, label, end=True))
        parts.append(f'<path class="{shade}" d="{_rounded(start, y, length)}"/>')
        if value > full:
            at = start + length - 22
            parts.append(f'<path class="cut" d="M{at:.1f} {y + _BAR + 2} l6 {-_BAR - 4}"/>')
        parts.append(_text(f"value{ours}", round(start + length + 8, 1), y + 12, shown(panel.metric, value, values)))
    return parts


def _shade(key: str, row: int) -> str:
    if key not in (COMPILED, PORTABLE):
        return "bar"
    return "second" if row else "first"


def _scale(values: Sequence[float]) -> float:
    """Return the value of a full bar: the greatest, unless it would flatten the rest; then it is drawn cut."""
    ordered = sorted(values)
    if len(ordered) > 2 and ordered[-1] > _CUT * ordered[-2] > 0:
        return ordered[-2] * 1.25
    return ordered[-1] if ordered[-1] > 0 else 1.0


def _rounded(x: float, y: float, length: float) -> str:
    """Return the path of a bar that is round at its end alone."""
    r = min(3.0, length / 2)
    return (
        f"M{x} {y} h{length - r:.1f} a{r:.1f} {r:.1f} 0 0 1 {r:.1f} {r:.1f} v{_BAR - 2 * r:.1f} "
        f"a{r:.1f} {r:.1f} 0 0 1 {-r:.1f} {r:.1f} h{r - length:.1f} z"
    )


def _text(style: str, x: float, y: float, content: str, *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text class="{style}" x="{x}" y="{y}"{anchor}>{escape(content)}</text>'
