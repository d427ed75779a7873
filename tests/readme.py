"""Writes the generated parts of README.md: `make docs`. A test compares them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from click.testing import CliRunner

from ptc_worker.settings import WorkerSettings
from roma_bridge.cli.main import program

README = Path(__file__).parents[1] / "README.md"


def help_text() -> str:
    """Give the help of ptc-enqueue as a fenced block."""
    text = (
        CliRunner()
        .invoke(program, ["--help"], prog_name="ptc-enqueue", terminal_width=110, max_content_width=110)
        .output
    )
    return f"```console\n$ ptc-enqueue --help\n{text.rstrip()}\n```"


def settings_table() -> str:
    """Give the worker's settings as a table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, info in WorkerSettings.model_fields.items():
        default = "" if info.default_factory or info.default is None else f"`{info.default}`"
        rows.append(f"| `{name.upper()}` | {default} | {(info.description or '').replace(chr(10), ' ')} |")
    return "\n".join(rows)


def rendered(text: str) -> str:
    """Fill the generated parts of a README."""
    for name, part in (("help", help_text()), ("settings", settings_table())):
        pattern = re.compile(rf"(<!-- {name}:start -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        text = pattern.sub(lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    README.write_text(rendered(README.read_text("utf-8")), "utf-8")
