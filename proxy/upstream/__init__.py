"""Connects to Cloud Run: the connector (TCP, TLS, ALPN h2), connections, and the pool of them."""
