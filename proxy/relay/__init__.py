"""One exchange, and how it is sent on its way.

* `exchange`         a request and its response, forwarded between two streams
* `states`           what may happen next to an exchange, and what is then done: one table (pure)
* `dispatcher`       route → token → upstream stream
* `context`          what is kept ready for a route
* `signing`          fields of what is sent upstream (pure)
* `waiting`          the one slow path, a task for each exchange that lacks something
* `via`              which sidecars a request has passed through (pure)
* `upstream_errors`  what the log says of answers that stop work

What an exchange costs, in instructions (`make profile`: POST 1 KiB, one connection, 50 at a time; Python 3.11 built
without profile-guided optimisation; it repeats within a percent)::

                                    sidecar    nghttpx
    libnghttp2                       13,645     22,614
    the sidecar's own modules        12,063
    Python                            6,779
    TLS                               6,347      6,984
    C library                         3,453      1,617
    event loop and the rest             411     14,549
    all                              42,698     45,764
"""
