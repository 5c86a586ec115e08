"""Error responses of Cloud Run: their cause and their remedy. Pure. Used by `check` and by the relay's log lines.

* `response`  one response, and which party sent it
* `findings`  the cause of an error response, and what to do
* `gcloud`    the gcloud commands of the remedies
"""
