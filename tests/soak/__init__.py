"""`python -m tests.soak`: everything real, everything failing now and then, and every result checked.

* `network`   the two hops before and behind the sidecar: they cut, delay, stall and dribble
* `bank`      a Restate service with accounts, clients that use it, and what must be in the accounts at the end
* `sidecars`  the sidecar: taken over, restarted, killed, its workers killed
* `acts`      what goes wrong, one after the other, by seed
* `run`       brings it all up, and judges

`python -m tests.soak.cluster`: the same accounts in a Restate cluster that uses two sidecars behind HAProxy.

* `nodes`     the Restate cluster, and an idempotent client of it
* `replicas`  HAProxy and the sidecars, with the settings of `config/kubernetes/shared`
* `cluster`   kills and replaces a sidecar and a node, and restarts all, under load, and judges

`conclusion` prints the judgement of either.
"""
