"""The form of the JSON that `check` prints, and an assertion about one diagnosis."""

from __future__ import annotations

import jsonschema

from tests.support.emulated_setup import CommandResult

NAMES = ["credentials", "token", "dns", "tcp", "tls", "http2", "private", "clock", "discovery"]

FORM = {
    "type": "object",
    "required": ["version", "outcome", "routes"],
    "additionalProperties": False,
    "properties": {
        "version": {"const": 1},
        "outcome": {"enum": ["ok", "warning", "failed"]},
        "routes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["route", "url", "audience", "outcome", "steps"],
                "additionalProperties": False,
                "properties": {
                    "route": {"type": "string"},
                    "url": {"type": "string"},
                    "audience": {"type": ["string", "null"]},
                    "outcome": {"enum": ["ok", "warning", "failed"]},
                    "steps": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["step", "outcome", "code", "text", "remedy", "commands", "details"],
                            "additionalProperties": False,
                            "properties": {
                                "step": {"enum": NAMES},
                                "outcome": {"enum": ["ok", "warning", "failed", "skipped"]},
                                "code": {"type": ["string", "null"]},
                                "text": {"type": "string", "minLength": 1},
                                "remedy": {"type": ["string", "null"]},
                                "commands": {"type": "array", "items": {"type": "string"}},
                                "details": {"type": "object"},
                            },
                        },
                    },
                },
            },
        },
    },
}


def assert_diagnosed(ran: CommandResult, step: str, code: str, *telling: str) -> None:
    """Assert exit code 1, that this is the one step that failed, and that the remedy (or a command) says all of it."""
    assert (ran.code, ran.err) == (1, ""), ran.err
    jsonschema.validate(ran.document, FORM)
    assert ran.faults() == {step: code}
    found = ran.steps()[step]
    assert found["remedy"]
    said = " ".join([found["text"], found["remedy"], *found["commands"]])
    for words in telling:
        assert words in said
    assert "eyJ" not in ran.out
    assert "ya29." not in ran.out
