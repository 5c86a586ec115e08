"""Health, metrics, routes and a status page, on a port of their own.

Nothing in here is secret and nothing changes anything, so the port may be reached by probes and Prometheus. Nothing
in here dials upstream either: a sidecar that is well stays ready while one of its many services is not.
"""

from proxy.admin.plane import AdminPlane, Health

__all__ = ["AdminPlane", "Health"]
