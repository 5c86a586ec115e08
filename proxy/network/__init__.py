"""Networking that upstream connections and calls to Google share.

* `address`      HOST:PORT, [IPV6]:PORT and unix:/path
* `authorities`  the file of trusted certificate authorities
* `loop`         the event loop of a worker
* `resolver`     resolves host names

It is a room of its own because `upstream` and `tokens` both use it, and must not import each other.
"""
