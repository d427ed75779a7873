"""What helps to write plans: a first one from a sentence, and the schema of all."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import click

from ptc_contracts import PTCExecutionPlan
from roma_bridge.cli.changes import Change, changed
from roma_bridge.files import UnwritableError
from roma_bridge.plans import read_plan

if TYPE_CHECKING:
    from roma_bridge.cli.asked import Asked

_LONGEST_SLUG = 40


def schema() -> int:
    """Print the JSON schema of a plan."""
    click.echo(json.dumps(PTCExecutionPlan.model_json_schema(), indent=2))
    return 0


def new(asked: Asked) -> int:
    """Write a plan file from a sentence, with the fields that are changed most.

    Raises:
        InvalidPlanError: the sentence is empty, or a change does not fit.
        UnwritableError: the file exists, or cannot be written.
    """
    sentence = (asked.new or "").strip()
    slug = _slug(sentence)
    document = {
        "execution_id": f"{slug}-{uuid4().hex[:4]}",
        "scaffolding": {"task_description": sentence, "requirements": [], "dependencies": []},
        "max_iterations": PTCExecutionPlan.model_fields["max_iterations"].default,
        "timeout_seconds": PTCExecutionPlan.model_fields["timeout_seconds"].default,
    }
    text = changed(json.dumps(document).encode(), [Change.parse(change) for change in asked.changes])
    read_plan(text)
    pretty = json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
    name = asked.plans[0] if asked.plans else f"{slug}.json"
    if name == "-":
        click.echo(pretty, nl=False)
        return 0
    if name.startswith("-"):
        name = f"./{name}"  # no option of whatever is told this name
    _write(name, pretty, force=asked.force)
    click.echo(name)
    click.echo(
        f"say what must hold in scaffolding.requirements, then: ptc-enqueue {shlex.quote(name)}", err=True
    )
    return 0


def _write(path: str, text: str, *, force: bool) -> None:
    if path.endswith("/"):
        raise UnwritableError(f"{path} was not written: it names a directory; give the file's name, too")
    try:
        with Path(path).open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UnwritableError(
            f"{path} exists already: use --force to replace it, or give another PATH"
        ) from None
    except OSError as error:
        raise UnwritableError(f"{path} was not written: {error.strerror or error}") from error


def _slug(sentence: str) -> str:
    """Make a name for a file of a sentence: its first words, in small letters."""
    words = re.findall(r"\w+", sentence.lower())
    slug = ""
    for word in words:
        if len(slug) + len(word) >= _LONGEST_SLUG:
            break
        slug = f"{slug}-{word}" if slug else word
    return slug or "plan"
