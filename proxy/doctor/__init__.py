"""The doctor: checks a route in the steps of a request, and reports each problem with its remedy.

It uses the sidecar's own parts (credentials, token source, connector, engine), so it has the same problems as the
sidecar.

* `report`      steps, outcomes, and the JSON form (pure)
* `claims`      header, claims and lifetime of a token (pure)
* `rendering`   a report as text (pure)
* `identity`    the steps `credentials` and `token`
* `connecting`  the steps `dns`, `tcp`, `tls` and `http2`
* `sending`     one request on a connection
* `diagnosis`   the steps `private`, `clock` and `discovery` (pure)
* `checking`    all steps of one route, and all routes
"""
