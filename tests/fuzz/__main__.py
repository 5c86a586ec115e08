"""Random peers against an engine, for as long as one likes::

    python -m tests.fuzz --seconds 3600
    python -m tests.fuzz --case 123456          # one case, which a failure has named
    python -m tests.fuzz --engine both          # each case in both engines, which must report the same
    python -m tests.fuzz --streams 1000000      # memory over so many exchanges between two engines

What the compiled engine does to memory is best watched under sanitizers. Build it with them, in a copy of this folder,
and load their runtime first::

    CFLAGS='-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined' LDFLAGS='-fsanitize=address,undefined' \
        python setup.py build_ext --inplace --force
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 python -m tests.fuzz --seconds 3600

`PYTHONMALLOC=malloc` lets them see the objects of Python. The leak check is off because the interpreter itself keeps
what it allocates at its start; `--streams` is the check for leaks. For a libnghttp2 under the same watch, build it with
the same CFLAGS and put its pkgconfig folder in front (`PKG_CONFIG_PATH`, and `LD_LIBRARY_PATH` to run).
"""

from __future__ import annotations

import argparse
import sys
import time

from proxy.http2.choice import engine_choice
from tests.fuzz.case import Case
from tests.fuzz.endurance import run_streams
from tests.fuzz.twins import Diverged, Twins
from tests.support.peers.engines import EventEngineFactory, EventFactory


def main() -> None:
    """Run cases until one fails or time is up."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="run an engine against random peers")
    parser.add_argument("--engine", choices=("nghttp2", "h2", "both"), default="nghttp2")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0, help="the first case's number")
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--streams", type=int, help="no random peers, but so many exchanges, and memory as they go by")
    options = parser.parse_args()
    make: EventFactory = (
        Twins if options.engine == "both" else EventEngineFactory(options.engine, engine_choice(options.engine).make)
    )
    if options.streams is not None:
        run_streams(make, options.streams, sys.stdout)
    elif options.case is not None:
        run_case(make, options.case)
    else:
        run_cases(make, options.first, options.seconds)


def run_cases(make: EventFactory, first: int, seconds: float) -> None:
    """Run one case after the other; name the one that fails."""
    number, parted, end = first, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            parted += not run_case(make, number)
        except BaseException:
            sys.stderr.write(f"case {number}\n")
            raise
        number += 1
    sys.stdout.write(f"{number - first} cases, {parted} of which ended early where engines may differ\n")


def run_case(make: EventFactory, number: int) -> bool:
    """Run a case; return whether it came to its end."""
    try:
        Case(make, number).run()
    except Diverged:
        return False
    return True


if __name__ == "__main__":
    main()
