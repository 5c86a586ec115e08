"""`python -m proxy.settings schema` and `… example` print the files in `config/` that are made of the model."""

from __future__ import annotations

import json
import sys

from proxy.settings.printing import example_toml, json_schema


def main(what: str) -> str:
    """Return the text of `routes.schema.json` for `schema`, of `routes.example.toml` for `example`."""
    if what == "schema":
        return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if what == "example":
        return example_toml()
    raise SystemExit("python -m proxy.settings schema|example")


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1] if len(sys.argv) > 1 else "schema"))
