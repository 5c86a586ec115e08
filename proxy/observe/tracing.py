"""Whether this process is to write traces, as OpenTelemetry's own environment variables say.

`traces`, and with it OpenTelemetry, is imported only if they ask for it: 14 MiB, and a quarter of a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit

import structlog

from proxy.observe.observer import Observer

__all__ = ["NOT_INSTALLED_REMEDY", "TracingRefused", "tracing_observers", "tracing_refusal"]

_log: Final = structlog.get_logger("tracing")

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_PACKAGE: Final = "opentelemetry.exporter.otlp.proto.http"

NOT_INSTALLED_REMEDY: Final = "install the extra: pip install 'cloudrun-sidecar[otel]', or unset the variable"
"""What to do where OpenTelemetry is asked for and missing."""


class TracingRefused(Exception):
    """Traces are asked for and cannot be written. The text says why; `remedy` what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def tracing_refusal(environment: Mapping[str, str]) -> TracingRefused | None:
    """Return why traces cannot be written although a variable asks for them; None if they can, or none does.

    It imports no module of OpenTelemetry.
    """
    try:
        _wanted_by(environment)
    except TracingRefused as refused:
        return refused
    return None


def tracing_observers(environment: Mapping[str, str]) -> tuple[Observer, ...]:
    """Return the observer that writes traces; nothing if no variable asks for them, or they cannot be written."""
    try:
        if not _wanted_by(environment):
            return ()
    except TracingRefused:
        return ()
    try:
        # OpenTelemetry is optional, and slow to import.
        from proxy.observe.traces import make_traces

        return (make_traces(),)
    except Exception as exc:  # noqa: BLE001 - requests are served without traces, too
        _log.error("traces are off: OpenTelemetry does not start", error=f"{type(exc).__name__}: {exc}")
        return ()


def _wanted_by(environment: Mapping[str, str]) -> str:
    """Return the name of the variable that asks for traces; "" if none does. Raises TracingRefused."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    endpoint = next((name for name in _ENDPOINTS if environment.get(name, "").strip()), "")
    exporters = [name.strip() for name in environment.get(_EXPORTER, "").split(",") if name.strip()]
    if "none" in exporters or not (endpoint or exporters):
        return ""
    if exporters and "otlp" not in exporters:
        raise TracingRefused(f"{_EXPORTER} names another exporter than otlp", f"set {_EXPORTER}=otlp, or none")
    protocol = next((name for name in _PROTOCOLS if environment.get(name, "").strip()), "")
    if protocol and environment[protocol].strip() != "http/protobuf":
        raise TracingRefused(
            f"{protocol} names another protocol than http/protobuf, the only one that is built in",
            f"set {protocol}=http/protobuf, and the endpoint to the receiver's port for HTTP, usually 4318",
        )
    if endpoint and not _is_http_url(environment[endpoint].strip()):
        raise TracingRefused(f"{endpoint} is not a URL with http:// or https://", f"set {endpoint}=http://HOST:4318")
    if not _is_installed():
        raise TracingRefused(
            f"{endpoint or _EXPORTER} is set, but OpenTelemetry is not installed", NOT_INSTALLED_REMEDY
        )
    return endpoint or _EXPORTER


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def _is_installed() -> bool:
    try:
        return find_spec(_PACKAGE) is not None
    except ModuleNotFoundError:
        return False
