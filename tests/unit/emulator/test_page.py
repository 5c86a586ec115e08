"""The page about the emulator: its example in Python runs, and it names all that can be changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.emulator import Fault, ServiceFault, control
from proxy.emulator.model import ENDPOINTS

PAGE = Path(__file__).parents[3] / "docs" / "emulator.md"


def test_the_example_in_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    exec(compile(example, str(PAGE), "exec"), {"__name__": "example"})
    places, streams = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"GCE_METADATA_HOST=127\.0\.0\.1:\d+ SSL_CERT_FILE=/\S+ URL=https://127\.0\.0\.1:\d+", places)
    assert streams == "[]"


def test_it_names_every_endpoint_and_every_fault() -> None:
    told = re.search(
        r"Endpoints are (.*?); their faults are (.*?)\. Those of `cloud-run` are (.*?)\. ",
        PAGE.read_text("utf-8"),
        re.DOTALL,
    )
    assert told is not None
    names = [re.findall(r"`([\w-]+)`", part) for part in told.groups()]
    assert names == [list(ENDPOINTS), [fault.value for fault in Fault], [fault.value for fault in ServiceFault]]


@pytest.mark.parametrize("text", [PAGE.read_text("utf-8"), control.__doc__ or ""], ids=["page", "docstring"])
def test_it_names_what_can_be_changed_of_a_service_and_of_google(text: str) -> None:
    for path, fields in (("services", {"service", *control.SERVICE_FIELDS}), ("google", {*control.GOOGLE_FIELDS})):
        (body,) = re.findall(rf"/emulator/{path}`?[ |`]*(\{{.*?\}})", text, re.DOTALL)
        assert set(re.findall(r'"(\w+)":', body)) == fields
