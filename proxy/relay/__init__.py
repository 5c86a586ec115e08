"""What one exchange is (`exchange`, pure), and how it is carried across (`forwarder`, `carrier`, `waiting`).

Beside that: which sidecars a request has passed through (`via`, pure), and what the log says of answers that stop work
(`upstream_errors`).

Where the time of an exchange goes (perf; CPython 3.11, everything compiled, POST 1 KiB, 50 at a time on one connection;
8 µs of the process' CPU in all):

=========================================================  ====
interpreter library: objects, dicts, what C calls of it    29 %
kernel: sockets, waking up                                 25 %
libnghttp2, both sides                                     12 %
the engine's own modules, both sides                       10 %
C library: copies, memory                                   8 %
TLS                                                         7 %
relay, wire, connections, pool, counters: compiled          6 %
uvloop                                                      2 %
=========================================================  ====

Nothing of the first row has more than a thirtieth. Between joined engines, without sockets and TLS, an exchange costs
4.7 µs, of which 3.5 are the engines' and would remain if nothing were decided here. Interpreted, it is 8.1 of 12.5.
"""
