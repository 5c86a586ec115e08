"""An engine on a transport: one flush a loop turn, credit, and the accounting of what is queued.

It stands between the rooms `downstream` and `upstream`, which do not know each other, and `http2`, which has no IO.
"""
