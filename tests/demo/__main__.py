"""`python -m tests.demo`: a real restate-server calls a private (emulated) Cloud Run service through the sidecar."""

from __future__ import annotations

import os
import signal


def end_at_once(signum: int, frame: object) -> None:
    """End while nothing has started: an exception would come out of whatever is being imported."""
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, end_at_once)  # until the loop of the demo handles it

    from tests.demo.play import main

    main(prog_name="python -m tests.demo")
