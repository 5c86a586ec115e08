"""cloudrun-sidecar: a signing reverse proxy between Restate and private Cloud Run services.

::

    restate-server ──h2c──▶ downstream ─▶ relay ─▶ upstream ──TLS, ALPN h2──▶ Cloud Run
                             (Hypercorn)     │
                                          tokens ──▶ metadata server · IAM Credentials · OAuth token endpoint · STS

Downstream is Restate, who connects to us; upstream is Cloud Run, whom we connect to.

Rooms, in the order in which they may import one another (to the right, never back; `make check` holds it)::

    cli → sidecar | doctor → admin | relay | settings → downstream | upstream | tokens
        → wire → telemetry → cloud_run → routing | restate | http2 | network → errors → quoting

* `cli`         the command line, one file a command
* `sidecar`     composition root: builds every object once, owns lifetimes and drain
* `doctor`      tries routes step by step with the sidecar's own parts, and says what mends what is wrong
* `settings`    TOML file, environment and flags → validated, frozen settings
* `relay`       what one exchange is (`exchange`, pure) and how it is carried across (`forwarder`, `carrier`,
                `waiting`); loops (`via`, pure), and lines about an upstream's errors
* `downstream`  Hypercorn's listener, h2c connections, HTTP/1.1 through ASGI
* `upstream`    TLS connections with ALPN h2, and the pool of them
* `tokens`      credentials, minting, the cache of ID tokens
* `wire`        one HTTP/2 connection on a transport, and what connections and exchanges are to each other
* `http2`       HTTP/2 without IO: events, the engine seam, field rules (pure)
* `cloud_run`   what an answer of Cloud Run means, and the commands that mend it (pure)
* `routing`, `restate`, `errors`   which upstream, what Restate expects, what went wrong (pure)
* `quoting`     what may be repeated of values and answers: no secret (pure)
* `network`     what upstream connections and Google calls share of the networking: event loop, host names
* `telemetry`   log lines and metrics
* `exit_codes`  what the end of a command means
* `admin`       health, metrics and routes on their own port
* `emulator`    a strict local Google for development and tests; it imports none of the rooms above

One invocation: a `DownstreamConnection` feeds what it reads to its engine and gets events; a head becomes a route,
the route's token is taken from memory, an upstream connection with a free stream is taken from the pool, and from
then on a `Carrier` passes data, trailers, ends and resets across by direct call. There is no task and no queue per
stream; the only thing ever awaited is a token or a connection that is not there yet.

The modules on this way (`DATA_PATH` in setup.py) are plain typed Python. Where there is a compiler, mypyc makes native
code of them, which takes more than a quarter off the CPU of a request. So they may not be patched from outside, derive
from nothing that is interpreted, and have no coroutines, which mypyc cancels in a way that Python 3.12 warns of.
"""

__version__ = "0.1.0"
