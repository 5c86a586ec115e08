"""One exchange, and how it is sent on its way.

* `exchange`         a request and its response, forwarded between two streams; the table of what may happen next
* `dispatcher`       route → token → upstream stream
* `context`          what is kept ready for a route
* `signing`          fields of what is sent upstream (pure)
* `waiting`          the one slow path, a task for each exchange that lacks something
* `via`              which sidecars a request has passed through (pure)
* `upstream_errors`  what the log says of answers that stop work
"""
