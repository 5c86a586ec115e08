"""Which environments ask for traces, and which of them cannot have them."""

from __future__ import annotations

import pytest

from proxy.observe.tracing import tracing_observers, tracing_refusal

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "greeter"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "TRUE"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_traces_are_off_without_a_variable(environment: dict[str, str]) -> None:
    assert tracing_refusal(environment) is None
    assert tracing_observers(environment) == ()


@pytest.mark.parametrize(
    "environment",
    [
        ENDPOINT,
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://[::1]:4318/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "console, otlp"},
        {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
    ],
)
def test_traces_are_asked_for_and_can_be_written(environment: dict[str, str]) -> None:
    assert tracing_refusal(environment) is None


@pytest.mark.parametrize(
    ("environment", "reason", "remedy"),
    [
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL", "4318"),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "4318"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "another exporter than otlp", "OTEL_TRACES_EXPORTER=otlp"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "not a URL", "http://HOST:4318"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1"}, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is not", "http://"),
    ],
)
def test_unusable_trace_settings_are_reported(environment: dict[str, str], reason: str, remedy: str) -> None:
    refused = tracing_refusal(environment)
    assert refused is not None
    assert reason in str(refused)
    assert remedy in refused.remedy
    assert not any(value in str(refused) for value in environment.values())
    assert tracing_observers(environment) == ()
