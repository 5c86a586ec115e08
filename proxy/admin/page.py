"""The status page: one HTML document without scripts and external files."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from proxy import __version__
from proxy.observe.metrics import Metrics
from proxy.routes import Route

__all__ = ["status_page"]

_STYLE: Final = """\
:root { color-scheme: light dark; --ink: #1d2433; --soft: #667085; --line: #e4e7ec; --page: #f7f8fa; --card: #fff;
  --well: #067647; --well-ground: #dcfae6; --unwell: #b54708; --unwell-ground: #fef0c7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #98a2b3; --line: #2b3242; --page: #11151d;
  --card: #1a1f2b; --well: #75e0a7; --well-ground: #053321; --unwell: #fec84b; --unwell-ground: #4e2a0a; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 3rem 1.5rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: .4rem 1rem; }
h1 { margin: 0; font-size: 1.5rem; }
h2 { margin: 2rem 0 .6rem; font-size: .8rem; letter-spacing: .06em; text-transform: uppercase; color: var(--soft); }
.version { color: var(--soft); }
.state { padding: .1rem .7rem; border-radius: 1rem; font-weight: 600;
  color: var(--unwell); background: var(--unwell-ground); }
.state.well { color: var(--well); background: var(--well-ground); }
.card { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .6rem 1rem; text-align: left; vertical-align: top; }
th { font-size: .8rem; font-weight: 600; color: var(--soft); white-space: nowrap; }
tbody tr { border-top: 1px solid var(--line); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td:first-child code { white-space: nowrap; }
code { font: .87em ui-monospace, monospace; overflow-wrap: anywhere; }
small { display: block; color: var(--soft); }
nav a { margin-right: 1rem; color: inherit; }
"""

_HEADINGS: Final = (
    '<tr><th>Path</th><th>Upstream</th><th>Identity</th><th class="number">In flight</th>'
    '<th class="number">Ended</th><th class="number">Failures</th></tr>'
)


def status_page(ready: bool, readiness: str, routes: Sequence[Route], metrics: Metrics) -> str:
    """Return the page; `readiness` is `STATE: REASON`."""
    state, _, reason = readiness.partition(": ")
    rows = "\n".join(_row(route, metrics) for route in routes)
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="10">
<title>{escape(state)} – cloudrun-sidecar</title>
<style>
{_STYLE}</style>
</head>
<body>
<main>
<header>
<h1>cloudrun-sidecar</h1>
<span class="state{" well" if ready else ""}">{escape(state)}</span>
<span>{escape(reason)}</span>
<span class="version">version {escape(__version__)}</span>
</header>
<h2>Routes</h2>
<div class="card">
<table>
<thead>{_HEADINGS}</thead>
<tbody>
{rows}
</tbody>
</table>
</div>
<h2>More</h2>
<nav><a href="livez">/livez</a><a href="readyz">/readyz</a><a href="startupz">/startupz</a>\
<a href="metrics">/metrics</a><a href="routes">/routes</a></nav>
</main>
</body>
</html>
"""


def _row(route: Route, metrics: Metrics) -> str:
    counted = metrics.route(route)
    return (
        f"<tr><td><code>/{escape(route.name)}</code></td>"
        f"<td><code>{escape(f'{route.origin}{route.base_path}')}</code></td>"
        f"<td>{_identity(route)}</td>"
        f'<td class="number">{counted.in_flight}</td>'
        f'<td class="number">{counted.total}</td>'
        f'<td class="number">{counted.failures}</td></tr>'
    )


def _identity(route: Route) -> str:
    if not route.signed:
        return "none: requests are forwarded unsigned"
    identity = f"<code>{escape(route.impersonate)}</code>" if route.impersonate else "ambient"
    via = f"<small>through {escape(', '.join(route.delegates))}</small>" if route.delegates else ""
    return f"{identity}{via}<small>audience <code>{escape(route.audience)}</code></small>"
