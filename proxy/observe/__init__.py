"""Observers of exchanges, mints and connections: metrics, access log, warnings, traces; and the log lines themselves.

No secret gets into a log line or a metric.

* `exchange`     what observers are told of exchanges
* `observer`     what they are told of mints and connections; several observers told as one
* `metrics`      an observer that counts; `counters` are those of the data path, compiled
* `families`     which metrics there are; `exposition` renders them for Prometheus; `process` are those of the process
* `pairs`        how tables that change are read
* `live`         what metrics and status page read from other rooms when they are asked
* `startup`      the log line that says where the sidecar listens
* `health`       an observer that knows which routes work, and the last failures
* `history`      the last minutes of each route, for charts
* `worker_state`  what a worker has counted, and its state, as text; `totals` adds up what several have counted;
                 `combined` is several workers as one; `view` is one worker, or several as one, for what shows it
* `explanation`  what an error response or a failure means, in the words of `check`
* `access_log`   an observer that writes one line an exchange
* `warnings`     an observer that writes what went wrong, and what mends it
* `throttle`     which of many equal log lines are written
* `tracing`      whether traces are asked for; `traces`, an observer that makes a span of each exchange, is imported
                 only then, and is the only importer of opentelemetry
* `request_context`  the trace and the invocation of an exchange, for log lines
* `lines`        log lines on stderr, and the filter that keeps secrets out of them
* `background`   standard output and error that never block, whatever their readers do
"""
