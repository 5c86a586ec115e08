"""`python -m proxy.settings schema|example|table` prints what is generated from the model.

These are `config/routes.schema.json`, `config/routes.example.toml` and the tables in docs/configuration.md.
"""

from __future__ import annotations

import json
import sys

from proxy.settings.printing import example_toml, json_schema, markdown_tables


def main(what: str) -> str:
    """Return `routes.schema.json` for `schema`, `routes.example.toml` for `example`, Markdown for `table`."""
    if what == "schema":
        return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if what == "example":
        return example_toml()
    if what == "table":
        return markdown_tables() + "\n"
    raise SystemExit("python -m proxy.settings schema|example|table")


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1] if len(sys.argv) > 1 else "schema"))
