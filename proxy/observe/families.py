"""The metrics that there are: name, type, labels, meaning. docs/metrics.md has the table `FAMILIES`, too."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

__all__ = ["FAMILIES", "PREFIX", "PROCESS_FAMILIES", "Family"]

PREFIX: Final = "cloudrun_sidecar_"
"""What all names begin with."""


class Family(NamedTuple):
    """One metric."""

    name: str
    """Without `PREFIX`; that of a counter ends in `_total`."""
    kind: Literal["counter", "gauge", "histogram"]
    """Its type."""
    labels: tuple[str, ...]
    """The names of its labels."""
    meaning: str
    """One line, for `HELP`."""


FAMILIES: Final = (
    Family("build_info", "gauge", ("version", "engine"), "Always 1: the version and the HTTP/2 engine that run"),
    Family("draining", "gauge", (), "1 while new requests are refused because the sidecar is shutting down"),
    Family("requests_in_flight", "gauge", ("route",), "Exchanges that have not ended"),
    Family("requests_waiting", "gauge", ("route",), "Requests that wait for a token, a connection or a free stream"),
    Family("requests_total", "counter", ("route", "status"), "Exchanges that have ended, by status of the response"),
    Family(
        "request_duration_seconds", "histogram", ("route",), "From the head of a request to the end of its exchange"
    ),
    Family(
        "time_to_first_octet_seconds",
        "histogram",
        ("route",),
        "From the head of a request to the head of the response from upstream",
    ),
    Family("request_bytes_total", "counter", ("route",), "Content of requests that have ended"),
    Family("response_bytes_total", "counter", ("route",), "Content of responses that have ended"),
    Family(
        "request_failures_total", "counter", ("route", "code"), "Failures of the sidecar or of its way to the service"
    ),
    Family(
        "stream_resets_total",
        "counter",
        ("route", "by", "code"),
        "Streams reset by downstream, upstream or the sidecar, by HTTP/2 error code; not NO_ERROR after a response",
    ),
    Family("caller_tokens_dropped_total", "counter", ("route",), "Requests whose own Google token was dropped"),
    Family("requests_refused_total", "counter", ("reason",), "Requests without a route that broke a rule of HTTP"),
    Family(
        "callers_unverified_total",
        "counter",
        ("reason",),
        "Requests refused because no Restate of restate_identity_keys has signed them",
    ),
    Family(
        "route_well",
        "gauge",
        ("route",),
        "0 while the last outcome on the route was a failure that needs a look, else 1",
    ),
    Family(
        "token_expiry_timestamp_seconds", "gauge", ("route",), "When the route's token expires; absent without a token"
    ),
    Family("token_last_mint_timestamp_seconds", "gauge", ("route",), "When the last token for the route was received"),
    Family(
        "token_mint_duration_seconds",
        "histogram",
        ("source", "account", "result"),
        "Mints by kind of credentials, account and result (success, failure)",
    ),
    Family(
        "token_mint_failures_total", "counter", ("source", "account", "code"), "Mints without a token, by failure code"
    ),
    Family(
        "clock_ahead_seconds",
        "gauge",
        (),
        "How far this machine's clock is ahead of Google's, as of the last mint; 0 if right or unknown",
    ),
    Family("upstream_connections", "gauge", ("origin",), "Open connections to services"),
    Family("upstream_connections_opened_total", "counter", ("origin",), "Connections to services ever opened"),
    Family("upstream_connections_opening", "gauge", ("origin",), "Connections to services that are being opened"),
    Family("upstream_requests_waiting", "gauge", ("origin",), "Requests that wait for a free stream"),
    Family(
        "upstream_clients_waiting", "gauge", ("origin",), "Connections of clients whose requests wait for a free stream"
    ),
    Family(
        "upstream_cancels_held_back",
        "gauge",
        ("origin",),
        "Streams of cancelled requests that are reset later, because many were cancelled",
    ),
    Family(
        "upstream_connect_failures_total",
        "counter",
        ("origin", "code"),
        "Attempts to connect that failed without failing a request",
    ),
    Family("upstream_goaways_total", "counter", ("origin", "code"), "GOAWAY frames from services, by error code"),
    Family(
        "upstream_responses_refused_total", "counter", ("origin", "reason"), "Responses that broke a rule of HTTP/2"
    ),
    Family("downstream_connections", "gauge", (), "Open connections of clients"),
    Family("downstream_connections_opened_total", "counter", (), "Connections of clients ever opened"),
    Family(
        "downstream_connections_refused_total",
        "counter",
        ("reason",),
        "Connections of clients closed because there were too many, or no request came",
    ),
    Family(
        "downstream_connections_cut_off_total",
        "counter",
        ("code",),
        "Connections of clients ended because of what the client did, by HTTP/2 error code",
    ),
    Family("downstream_tls_failures_total", "counter", (), "TLS handshakes of clients that failed"),
    Family("queued_bytes", "gauge", (), "What is queued for readers that are slower than their senders"),
    Family("queued_bytes_limit", "gauge", (), "How much of it there may be (queued_octets)"),
    Family("worker_queued_bytes_largest", "gauge", (), "Queued octets of the worker that has most"),
    Family("route_queued_bytes", "gauge", ("route",), "Queued octets of exchanges in flight, of both directions"),
    Family("upstream_queued_bytes", "gauge", ("origin",), "Queued octets that services have not taken yet"),
    Family("downstream_queued_bytes", "gauge", (), "Queued octets that are charged to connections of clients"),
    Family("downstream_queued_bytes_largest", "gauge", (), "Queued octets of the client connection that has most"),
    Family("downstream_connections_queued", "gauge", (), "Connections of clients that have queued octets"),
    Family("settings_last_reload_successful", "gauge", (), "0 after a reload that was refused, until one succeeds"),
    Family("settings_last_read_timestamp_seconds", "gauge", (), "When the settings in force were read"),
    Family(
        "settings_reloads_total",
        "counter",
        ("result",),
        "Reloads by result (reloaded, refused); one without a change counts as reloaded",
    ),
    Family("settings_need_restart", "gauge", (), "Changed settings that need a restart"),
    Family("workers", "gauge", (), "Worker processes that live"),
    Family("worker_restarts_total", "counter", (), "Workers that were replaced because they had ended"),
    Family("log_lines_dropped_total", "counter", (), "Log lines dropped because their reader did not keep up"),
)
"""In the order in which they are exposed; then come `PROCESS_FAMILIES`."""

PROCESS_FAMILIES: Final = (
    Family("process_cpu_seconds_total", "counter", (), "Processor time, user and system"),
    Family("process_virtual_memory_bytes", "gauge", (), "Virtual memory"),
    Family("process_resident_memory_bytes", "gauge", (), "Resident memory"),
    Family("process_start_time_seconds", "gauge", (), "When the process started, in seconds since the epoch"),
    Family("process_open_fds", "gauge", (), "Open file descriptors"),
    Family("process_max_fds", "gauge", (), "Limit of open file descriptors"),
)
"""The metrics of the process, whose names have no `PREFIX`: other programs have the same."""
