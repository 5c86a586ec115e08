"""Log lines and metrics. No secret gets into either.

* `lines`        log lines on stderr, and the net below that keeps secrets out of them
* `background`   standard output and error that never block, whoever reads them
* `counters`     what is counted on the data path, as plain integers
* `metrics`      everything that is counted in this process
* `repeats`      warnings that repeat, written once a second
* `exposition`   the same as Prometheus reads it; the only importer of prometheus_client
"""

from __future__ import annotations

from proxy.observe.background import background_output
from proxy.observe.counters import RouteMetrics
from proxy.observe.lines import configure_logging, redact
from proxy.observe.metrics import Metrics
from proxy.observe.repeats import Repeats

__all__ = ["Metrics", "Repeats", "RouteMetrics", "background_output", "configure_logging", "redact"]
