"""One exchange, and how it is sent on its way.

* `exchange`         a request and its response, forwarded between two streams
* `request_content`  the part of an exchange that holds and acknowledges the request's content
* `states`           what may happen next to an exchange, and what is then done: one table (pure)
* `dispatcher`       route → token → upstream stream
* `snapshot`         the routes of one reading of the settings, ready for use; swapped whole
* `open_contexts`    what is kept ready for routes that deployments name
* `context`          what is kept ready for each route and each path
* `signing`          fields of what is sent upstream (pure)
* `live`             the state of dispatcher, slots and pools, for metrics and the status page
* `stalls`           ends what stands still while memory is short
* `waiting`          the one slow path, a task for each exchange that lacks something
* `via`              which sidecars a request has passed through (pure)

What an exchange costs, in instructions (`make profile`: POST 1 KiB, one connection, 50 at a time; Python 3.11.7 of GCC
12.2 with -O3; it repeats within some percent, because how many requests come with one read does not)::

                                    sidecar    nghttpx
    libnghttp2                       13,057     22,704
    the sidecar's own modules        11,524
    TLS                               6,278      7,186
    Python                            4,574
    C library                         3,080      1,712
    event loop and the rest             191     14,612
    all                              38,705     46,214
"""
