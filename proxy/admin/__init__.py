"""Health, metrics, routes and a status page, on a port of their own.

* `plane`   the server and its paths
* `guard`   whose requests are answered, and how long clients may take
* `page`    the status page, `page.html`
* `status`  what is told in JSON, as `openapi.json` describes it
* `peers`   how a worker shows all workers
* `slices`  long answers a little at a time, so that the event loop goes on

No answer contains a secret, and no request changes anything, so probes and Prometheus may reach the port. No request
connects to an upstream: a healthy sidecar stays ready while one of its many services is down.
"""

from proxy.admin.plane import AdminPlane, Health

__all__ = ["AdminPlane", "Health"]
