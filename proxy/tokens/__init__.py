"""Who we are to Cloud Run: credentials, minting, and the cache of ID tokens.

* `model`, `slot`, `schedule`, `calls`   values, the hot path's view, timing, what may be told of an answer (pure)
* `source`, `timed`                      cache, single flight, refresh ahead, back-off; one mint and its deadline
* `google`                               the mint: choice of credential source, and the only HTTP in this room
* `adc`, `ambient`                       where credentials are; what a credential source can do
* `metadata`, `files`, `impersonation`   metadata server, credential files, IAM
* `credentials`, `worker`                google-auth, and the threads that it blocks
"""
