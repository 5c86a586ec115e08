"""The doctor: goes the way of a request step by step, and says at each what is wrong and what to do about it.

It uses the sidecar's own parts (credentials, token source, connector, engine), so that what it finds is what the
sidecar will meet.

* `report`      steps, outcomes, and the machine form (pure)
* `diagnosis`   what an answer, or its absence, means (pure)
* `claims`      a token taken apart (pure)
* `rendering`   a report for people (pure)
* `identity`    the steps that need no service: credentials, token
* `reaching`    the steps to a connection: DNS, TCP, TLS, HTTP/2
* `asking`      one request on a connection
* `examination` all of it, for a route and for many
"""
