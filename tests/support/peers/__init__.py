"""Peers that tests drive: the other end of a connection of the sidecar's, a client or an upstream service.

Take the one that is nearest to what the test is about:

| the test is about | module | what it gives |
|---|---|---|
| a process, TLS, sockets | `sockets` | `Peer`: h2 on a real socket, a client or a connection to a `Server` |
| frames, octet by octet | `raw` | `RawPeer`: the other end of an engine; `RawConnectionPeer`: of a connection |
| two engines, no frames | `memory` | `Joined`: a client's and a server's engine on one connection |
| what crosses the sidecar | `memory` | `Client` and `Service`: an engine each, around `tests.support.data_path` |
| a connection's writing | `transport` | `MemoryTransport`: what is written stays until it is read |
| one stream of an engine | `receivers` | `RecordingReceiver`: keeps what it is told, as events |
| a way out | `connect_proxy` | `ConnectProxy`: an HTTP proxy that opens tunnels (CONNECT) |
| a listener | `acceptor` | `RequestQueue`: hands the test each request, which the test answers |

`engines` turns the callbacks of any engine into the values of `events`, and has the list of engines under test. A
module that composes such peers with the code under test, for one directory of tests, is a stage of that directory.
"""
