"""cloudrun-sidecar: a signing reverse proxy between Restate and private Cloud Run services.

::

    restate-server ──h2c──▶ downstream ─▶ relay ─▶ upstream ──TLS, ALPN h2──▶ Cloud Run
                             (Hypercorn)     │
                                          tokens ──▶ metadata server · IAM Credentials · OAuth token endpoint · STS

Rooms, in the order in which they may import one another (to the right, never back; `make check` holds it)::

    cli → supervisor | doctor | deployments → worker → reloads → admin | relay | settings
        → downstream | upstream | tokens → connection → observe → cloud_run → network
        → routes | restate | request_identity | http2 → errors → quoting | clock_skew | allocator

* `cli`         the command line, one file a command
* `supervisor`  processes: one worker in this one, or several that are handed their connections
* `worker`      composition root of one worker: builds every object once, owns lifetimes and drain
* `ending`      how a worker ends: draining, or leaving its ports to another sidecar
* `reloads`     where a worker gets new settings from: its own reloader, or the supervisor
* `wiring`      makes parts of a worker from its settings
* `doctor`      tries routes step by step with the sidecar's own parts, and says what mends what is wrong
* `deployments` what to register with Restate, and what Restate has registered; only for commands
* `settings`    TOML file, environment and flags → validated settings, read in a process of its own
* `relay`       one exchange (`exchange`), and what may happen next to it (`states`); route → token → upstream stream
                (`dispatcher`); the routes of the moment, swapped whole (`snapshot`); the request's fields (`signing`)
* `downstream`  Hypercorn's listener, h2c connections, HTTP/1.1 through ASGI
* `upstream`    TLS connections with ALPN h2, and the pool of them
* `tokens`      credentials, minting, the cache of ID tokens
* `connection`  an engine on a transport: when it writes, credit, the accounting of what is queued
* `http2`       HTTP/2 without IO: the seam (`engine`), what both engines must agree on (`policy`), the engine on
                libnghttp2 (`nghttp2`, compiled), the engine on h2 that is always there (`portable`)
* `cloud_run`   what an answer of Cloud Run means, and the commands that mend it (pure)
* `routes`, `restate`, `errors`   which upstream, what Restate expects, what went wrong (pure)
* `request_identity`   whether a known Restate has signed a request (pure)
* `quoting`     what may be repeated of values and answers: no secret (pure)
* `clock_skew`  how far this machine's clock is from another one (pure)
* `allocator`   what the process asks of the C library's allocator
* `network`     event loop, host names, addresses to listen on, open files, systemd: what several rooms share of the
                networking
* `observe`     observers of exchanges, mints and connections (metrics, access log, warnings, traces), and log lines
* `signals`     what signals mean to a process that serves
* `exit_codes`  why a command ended
* `admin`       health, metrics and routes on their own port
* `emulator`    a strict local Google for development and tests; it imports none of the rooms above

The head of a request, from socket to socket, in six files:

1. `connection/protocol.py`    `Http2Protocol.buffer_updated`: a whole read goes to the engine
2. `http2/nghttp2/receiving.pxi`   a section is complete; a `Stream` is made and handed on (`on_request`)
3. `downstream/connection.py`  hands it to the dispatcher
4. `relay/dispatcher.py`       route, token, connection: all from memory, and the `Exchange` starts
5. `relay/exchange.py`         opens the upstream stream; from now on both streams tell it what comes, by direct call
6. `http2/nghttp2/engine.pyx`  the section is written; `Http2Protocol.flush` hands it to the transport

A stream has no task, no queue and no event objects. Only a token or a connection that is not available yet is awaited
(`relay/waiting.py`).

The modules on this way (`DATA_PATH` in setup.py) are plain typed Python that also runs interpreted. Where there is a
compiler, Cython compiles them with the types in the `.pxd` beside each: classes become C structures, and calls between
them go through tables. So such a class has at most one base class, its attributes are declared in `__slots__` and in
the `.pxd`, and its arguments must be of the declared classes. What overrides a method is declared with its base alone.

Glossary; each word has one meaning:

abort            end an exchange or a connection at once, with a reset
credit           receive window that is given back to the sender; content is charged to a budget until then
downstream       the client's side: Restate, or any client of the listener
drain            refuse new requests, and let live exchanges finish
engine           an HTTP/2 connection without IO (`http2`): on libnghttp2, or on h2
error code       of a reset or a GOAWAY (RFC 9113, 7)
exchange         one request and its response (RFC 9110, 3.4)
failure          what went wrong, with a failure code (`errors`); answered by a local reply, or by a reset
field line       name and value; a field section is a list of them: head, interim head or trailers (RFC 9110, 5 and 6.5)
head             a field section that begins a message
key              what a token is minted for: audience, impersonated account, delegates
listener         accepts connections of clients
local reply      a response that the sidecar makes itself
mint             obtain a new ID token from Google
observer         is told of exchanges, mints or connections, and changes nothing
octets           bytes on the wire or in memory
origin           scheme, host and port of an upstream (RFC 9110, 4.3.1)
pool             the connections to upstreams; an origin pool is that of one origin
retire           open no more streams on a connection, and close it when the last one has ended
route            a path prefix, its upstream, and the token that its requests get
slot             where the data path reads the current token of one key
snapshot         the routes of one reading of the settings, ready for use; swapped whole
status           of a response (RFC 9110, 15)
supervisor       the process that accepts connections and hands them to its workers
transient        of a failure: it passes without anyone's doing
upstream         the service's side: Cloud Run, to which the sidecar connects
worker           a process that serves connections
"""

__version__ = "0.1.0"
