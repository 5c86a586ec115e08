"""Processes, their signals, and the sockets that are listened on: what there is outside of a worker.

* `serve`    what `cloudrun-sidecar serve` runs: a worker in this process, or a supervisor with several
* `workers`  the supervisor: accepts connections and hands each to the worker that has the fewest

Nothing of what serves is imported here before it is known that it serves in this process: a supervisor holds no more
memory than it needs.
"""
