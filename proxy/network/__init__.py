"""Networking that upstream connections and calls to Google share.

* `loop`      the event loop of a worker
* `resolver`  resolves host names

It is a room of its own because `upstream` and `tokens` both use it, and must not import each other.
"""
