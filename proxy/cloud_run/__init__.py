"""What Cloud Run says, and what mends it. Pure: `check` tells it to a person, the relay writes it to the log.

* `response`    an answer, and what can be read off it
* `findings`  what it means, where it is not what the caller hoped for
* `gcloud`    the commands that mend it, spelled out
"""
