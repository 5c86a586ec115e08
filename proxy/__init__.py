"""cloudrun-sidecar: a signing reverse proxy between Restate and private Cloud Run services.

::

    restate-server ──h2c──▶ downstream ─▶ relay ─▶ upstream ──TLS, ALPN h2──▶ Cloud Run
                             (Hypercorn)     │
                                          tokens ──▶ metadata server · IAM Credentials · OAuth token endpoint · STS

Downstream is Restate, who connects to us; upstream is Cloud Run, whom we connect to.

Rooms, in the order in which they may import one another (to the right, never back; `make check` holds it)::

    cli → supervisor | doctor → worker → admin | relay | settings → downstream | upstream | tokens
        → connection → observe → cloud_run → network → routes | restate | http2 → errors
        → quoting | clock_skew

* `cli`         the command line, one file a command
* `supervisor`  processes: one worker in this one, or several that are handed their connections
* `worker`      composition root of one worker: builds every object once, owns lifetimes and drain
* `doctor`      tries routes step by step with the sidecar's own parts, and says what mends what is wrong
* `settings`    TOML file, environment and flags → validated settings, read in a process of its own
* `relay`       one exchange (`exchange`), and what may happen next to it (`states`); route → token → upstream stream
                (`dispatcher`), the request's fields (`signing`), the slow path (`waiting`), loops (`via`)
* `downstream`  Hypercorn's listener, h2c connections, HTTP/1.1 through ASGI
* `upstream`    TLS connections with ALPN h2, and the pool of them
* `tokens`      credentials, minting, the cache of ID tokens
* `connection`  an engine on a transport: one flush a loop turn, credit, the accounting of what is queued
* `http2`       HTTP/2 without IO: the seam (`engine`), what both engines must agree on (`policy`), the engine on
                libnghttp2 (`nghttp2`, compiled), the engine on h2 that is always there (`portable`)
* `cloud_run`   what an answer of Cloud Run means, and the commands that mend it (pure)
* `routes`, `restate`, `errors`   which upstream, what Restate expects, what went wrong (pure)
* `quoting`     what may be repeated of values and answers: no secret (pure)
* `clock_skew`  how far this machine's clock is from another one (pure)
* `network`     event loop, host names, addresses to listen on: what several rooms share of the networking
* `observe`     log lines and metrics
* `signals`     what signals mean to a process that serves
* `exit_codes`  why a command ended
* `admin`       health, metrics and routes on their own port
* `emulator`    a strict local Google for development and tests; it imports none of the rooms above

The head of a request, from socket to socket, in six files:

1. `connection/protocol.py`    `Http2Protocol.data_received`: a whole read goes to the engine
2. `http2/nghttp2/receiving.pyx`   a section is complete; a `Stream` is made and handed on (`on_request`)
3. `downstream/connection.py`  hands it to the dispatcher
4. `relay/dispatcher.py`       route, token, connection: all from memory, and the `Exchange` starts
5. `relay/exchange.py`         opens the upstream stream; from now on both streams tell it what comes, by direct call
6. `http2/nghttp2/engine.pyx`  the section is written; `Http2Protocol.flush` hands it to the transport

There is no task, no queue and no event a stream; the only thing ever awaited is a token or a connection that is not
there yet (`relay/waiting.py`).

The modules on this way (`DATA_PATH` in setup.py) are plain typed Python that runs as it is. Where there is a compiler,
Cython makes C of them, with the types that stand in the `.pxd` beside each: classes become C structures, calls between
them go through tables. So a class on this way derives from one other of them at most, its attributes stand in
`__slots__` and in the `.pxd`, and what it takes must be of the declared class.
"""

__version__ = "0.1.0"
