"""The parts of the operating system's networking that upstream connections and Google calls share.

* `loop`      the event loop of a worker
* `resolver`  host names to addresses

They stand to the right of `upstream` and `tokens` because both use them, and these two may not import each other.
"""
