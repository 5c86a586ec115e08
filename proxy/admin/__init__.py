"""Health, metrics, routes and a status page, on a port of their own.

* `plane`  the server and its paths
* `page`   the status page

No answer contains a secret, and no request changes anything, so probes and Prometheus may reach the port. No request
connects to an upstream: a healthy sidecar stays ready while one of its many services is down.
"""

from proxy.admin.plane import AdminPlane, Health

__all__ = ["AdminPlane", "Health"]
