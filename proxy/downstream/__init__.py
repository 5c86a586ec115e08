"""Takes requests from the client: Hypercorn's listener, h2c connections, and HTTP/1.1 through ASGI.

* `serving`         one accepted connection: is it HTTP/2 or HTTP/1.1?
* `handover`        connections from the supervisor, where there are several workers
* `listener`        all connections of a worker: served, counted, drained
* `admission`       which connections may be open, and which give way where there are too many
* `connection`      an h2c connection
* `ages`            ends connections that are old
* `delivery`        when the kernel has all of a response over TLS
* `http1`           an HTTP/1.1 request as a `Stream`
* `http1_protocol`  Hypercorn's HTTP/1.1 with a strict parser
* `http1_reading`   when its octets are read
* `http1_syntax`    the strict parser (pure)
* `hosts`           host names of this server (pure)
* `fields`          fields of HTTP/1.1 as HTTP/2 has them (pure)
* `channel`         messages between supervisor and worker
* `config`          Hypercorn's configuration, and the listening sockets
* `inherited`       listening sockets that another process has opened
* `tls`             certificates that are replaced while serving, and TLS handshakes
* `tls_reading`     how much a TLS connection decrypts at a time
* `binding`         binds sockets, and explains why one cannot be bound
"""
