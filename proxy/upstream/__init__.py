"""Faces Cloud Run: connecting (TCP, TLS, ALPN h2), connections, and the pool of them."""
