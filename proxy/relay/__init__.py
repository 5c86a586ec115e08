"""What one exchange is (`exchange`, pure), and how it is carried across (`carrier`, `forwarder`).

Where the time of an exchange goes (perf; CPython 3.11, compiled engine, POST 1 KiB, 50 at a time on one connection;
14 to 16 µs of the process' CPU in all):

================================================  ====
Python: relay, wire, connections, pool, metrics   62 %
kernel: sockets, waking up                        11 %
libnghttp2, both sides                             9 %
the engine's own modules, both sides               6 %
C library: memory                                  6 %
TLS                                                4 %
uvloop                                             2 %
================================================  ====

The Python is some 70 calls an exchange, none of which has more than a twentieth of it.
"""
