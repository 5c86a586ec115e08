"""An engine on a transport: when it writes, credit, and accounting of what is queued.

`downstream` and `upstream` build on it; `http2` below it has no IO.

* `protocol`   an HTTP/2 connection on a transport
* `flusher`    when connections write what they have queued
* `reads`      what was read, in slices
* `budget`     how many octets a worker may queue
* `rate_limit` how often something may happen
"""
