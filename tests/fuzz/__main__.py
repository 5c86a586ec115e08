"""Random peers against an engine, and against both sides of the relay, for as long as one likes::

    python -m tests.fuzz --relay --seconds 3600 # the relay between a hostile client and a hostile service, both engines
    python -m tests.fuzz --relay --keep         # and write the cases with new features to corpus.txt
    python -m tests.fuzz --relay-case eNrtV…    # one case, which a failure has named
    python -m tests.fuzz --seconds 3600         # an engine
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
from collections.abc import Sequence
from random import Random

import structlog

from proxy.http2.choice import EngineFactory, engine_choice
from tests.fuzz.case import Case
from tests.fuzz.endurance import run_streams
from tests.fuzz.relay_cases import CORPUS, Corpus, decoded, fuzz
from tests.fuzz.relay_cases import run_case as run_relay_case
from tests.fuzz.twins import Diverged, Twins
from tests.support.peers.engines import FACTORIES, EventEngineFactory, EventFactory


def main() -> None:
    """Run cases until one fails or time is up."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="run an engine against random peers")
    parser.add_argument("--engine", choices=("nghttp2", "h2", "both"), default="nghttp2")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--first", type=int, default=0, help="the first case's number")
    parser.add_argument("--case", type=int, help="this case alone")
    parser.add_argument("--relay", action="store_true", help="the relay with both engines, not an engine")
    parser.add_argument("--keep", action="store_true", help="write the relay's cases with new features to corpus.txt")
    parser.add_argument("--relay-case", help="this case of the relay alone")
    parser.add_argument("--streams", type=int, help="no random peers, but so many exchanges, and memory as they go by")
    options = parser.parse_args()
    if options.relay or options.relay_case:
        # Log lines of hostile peers would take most of the time.
        with structlog.testing.capture_logs():
            run_relay(options.seconds, options.relay_case, keep=options.keep)
        return
    make: EventFactory = (
        Twins if options.engine == "both" else EventEngineFactory(options.engine, engine_choice(options.engine).make)
    )
    if options.streams is not None:
        run_streams(make, options.streams, sys.stdout)
    elif options.case is not None:
        run_case(make, options.case)
    else:
        run_cases(make, options.first, options.seconds)


def run_relay(seconds: float, case: str | None, *, keep: bool) -> None:
    """Play one case, or the kept ones and then new ones until time is up."""
    makes: Sequence[EngineFactory] = list(FACTORIES.values())
    if case is not None:
        for make in makes:
            run_relay_case(make, decoded(case))
        return
    corpus, end = Corpus.read(makes), time.monotonic() + seconds
    played = fuzz(makes, Random(), corpus, lambda: time.monotonic() >= end, _tell)
    if keep:
        CORPUS.write_text("".join(f"{line}\n" for line in corpus.lines()))
    _tell(f"{played} cases, {corpus.features} features, {len(corpus.lines())} cases are worth keeping")


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


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
