"""Faces Restate: Hypercorn's listener, h2c connections, and HTTP/1.1 through ASGI."""
