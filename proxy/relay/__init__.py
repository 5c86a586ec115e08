"""What one exchange is (`exchange`, pure), and how it is carried across (`carrier`, `forwarder`).

Where the time of an exchange goes (perf; CPython 3.11, compiled engine, POST 1 KiB, 50 at a time on one connection;
13 to 15 µs of the process' CPU in all):

================================================  ====
Python: relay, wire, connections, pool, metrics   56 %
kernel: sockets, waking up                        15 %
libnghttp2, both sides                             8 %
the engine's own modules, both sides               7 %
C library: memory                                  7 %
TLS                                                5 %
uvloop                                             1 %
================================================  ====

The Python is 57 calls an exchange, none of which has more than a twentieth of it. Between joined engines, without
sockets and TLS, an exchange costs 8.1 µs, of which 3.9 are the engines' and would remain if nothing were decided here.
"""
