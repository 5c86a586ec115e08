"""The rules that both engines share. Pure.

`fields` says which field sections are well formed, `flood` how much a peer may ask for to no effect, `compression`
which lines enter HPACK's table, `sending` in which order frames leave, `stream_history` what a frame on a stream that
is over means, `refusals` the words by which broken rules are counted, `faults` what ends a stream or a connection.
`tests/conformance` runs both engines on the same test vectors.

The consequences of a fault of the peer:

====================================================  ==================================================
the peer                                              consequence
====================================================  ==================================================
breaks a rule of framing, compression, settings       connection ends: GOAWAY with the code of RFC 9113
uses a stream that never was                          connection ends: PROTOCOL_ERROR
opens a stream below one that it opened before        connection ends: PROTOCOL_ERROR
overruns the connection's receive window              connection ends: FLOW_CONTROL_ERROR
overruns a stream's receive window                    RST_STREAM or connection ends: FLOW_CONTROL_ERROR
pushes a stream's send window past 2³¹−1              RST_STREAM FLOW_CONTROL_ERROR
sends a malformed section, a wrong content-length     RST_STREAM PROTOCOL_ERROR
sends a request head over the limit                   reported, without its lines
sends another section over the limit                  RST_STREAM ENHANCE_YOUR_CALM
opens more streams than offered, or after our GOAWAY  RST_STREAM REFUSED_STREAM, not reported
sends HEADERS or DATA after its END_STREAM            connection ends: STREAM_CLOSED
sends DATA before its response head                   RST_STREAM or connection ends: PROTOCOL_ERROR
sends on a stream that we reset                       nothing; the connection's window is given back
sends too much to no effect, or on such streams       connection ends: ENHANCE_YOUR_CALM
====================================================  ==================================================
"""
