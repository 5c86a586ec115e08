from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Literal

import pytest
import structlog

from proxy.observe.lines import configure_logging


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("journal", [True, False])
def test_the_journal_of_systemd_gets_the_priority_of_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_format: Literal["json", "console"], journal: bool
) -> None:
    with (tmp_path / "stderr").open("w+") as stderr:
        read_by = os.fstat(stderr.fileno()) if journal else tmp_path.stat()
        monkeypatch.setenv("JOURNAL_STREAM", f"{read_by.st_dev}:{read_by.st_ino}")
        monkeypatch.setattr(sys, "stderr", stderr)
        configure_logging("debug", log_format)
        log = structlog.get_logger("relay")
        for method in ("debug", "info", "warning", "error", "critical"):
            getattr(log, method)("an event")
        try:
            raise ConnectionResetError
        except ConnectionResetError:
            log.exception("internal error")
        logging.getLogger("aiohttp").warning("of a library")
        stderr.seek(0)
        written = stderr.read().splitlines()
    starts = [line[: line.find(">") + 1] if re.match("<[0-9]>", line) else "" for line in written]
    traceback = len(written) - 7
    assert (traceback > 0) == (log_format == "console")
    expected = ["<7>", "<6>", "<4>", "<3>", "<2>", "<3>", *["<3>"] * traceback, "<4>"]
    assert starts == (expected if journal else [""] * len(written))
