"""Settings: TOML file, environment and flags are merged and validated; all problems are reported at once.

* `layers`     the sources of settings: file and environment
* `model`      every setting with its rules; `route` has those of a route, `deployments` those of open routes, `peers`
               the limits on clients and upstreams; `values` has rules for single values, `groups` the headings
* `field_texts` the texts of a setting that help, files and errors have in common
* `validation_errors` pydantic's errors as sentences
* `loading`    merges the layers and validates the result
* `printing`   settings as TOML, the sample file, the JSON Schema
* `plain`      validated settings as plain values, and their JSON form: what a sidecar runs on
* `reading`    all of the above in a process of its own
* `file_state` the state of a file, by which a change is noticed; `watching` notices that it may have changed
* `reloading`  reads the settings again, when their file has changed or on request
* `changes`    what new settings change, and what of it needs a restart

Names are the same everywhere: `--drain-timeout`, `CLOUDRUN_SIDECAR_DRAIN_TIMEOUT`, `drain_timeout`.
"""
