"""`--set`: fields of a plan, changed from the command line before it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import click

from ptc_contracts import PTCExecutionPlan, ScaffoldingSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MOST_SUGGESTIONS = 3

_WHOLE = "scaffolding"
"""The field whose parts are named as fields; it is an object that may be set as a whole, too."""


@dataclass(frozen=True)
class Change:
    """A new value for one field of a plan's document."""

    path: tuple[str, ...]
    value: Any

    @classmethod
    def parse(cls, text: str) -> Change:
        """Read `a.b=value`: the value is JSON where it is JSON and the field holds more than text.

        Raises:
            click.UsageError: there is no such field; close names are told.
        """
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise click.UsageError(f"--set {text}: give it as FIELD=VALUE, such as max_iterations=5")
        if name == _WHOLE:
            return cls((name,), _value(value, ScaffoldingSpec))
        field = next((known for known in _fields() if name == known or name.startswith(f"{known}.")), None)
        if field is None:
            raise click.UsageError(f"--set {name}: a plan has no such field{_suggestion(name)}")
        kind, parts = _fields()[field], name[len(field) + 1 :]
        if not parts:
            return cls(tuple(field.split(".")), _value(value, kind))
        if (item := _item_kind(kind)) is None:
            raise click.UsageError(f"--set {name}: {field} has no parts; set it as a whole")
        keys = (parts,) if item is str else tuple(parts.split("."))
        return cls((*field.split("."), *keys), _value(value, item))

    def apply(self, document: dict[str, Any]) -> None:
        """Change the field; objects on the way to it are made."""
        *way, last = self.path
        for name in way:
            if not isinstance(document.get(name), dict):
                document[name] = {}
            document = document[name]
        document[last] = self.value


def changed(text: bytes, changes: Sequence[Change]) -> bytes:
    """Apply changes to a plan's document; what is no JSON object stays as it is, for its reader to refuse."""
    if not changes:
        return text
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(document, dict):
        return text
    for change in changes:
        change.apply(document)
    return json.dumps(document).encode()


@cache
def _fields() -> dict[str, Any]:
    """Map the names of all fields, `scaffolding.context` like, to their types."""
    top = {name: info.annotation for name, info in PTCExecutionPlan.model_fields.items()}
    del top[_WHOLE]
    inner = {f"{_WHOLE}.{name}": info.annotation for name, info in ScaffoldingSpec.model_fields.items()}
    return inner | top


def _suggestion(name: str) -> str:
    known = list(_fields())
    ends = [field for field in known if field.rpartition(".")[2] == name.rpartition(".")[2]]
    close = [*ends, *get_close_matches(name, known, _MOST_SUGGESTIONS)]
    short = {field.rpartition(".")[2]: field for field in known}
    close += [short[match] for match in get_close_matches(name, short, _MOST_SUGGESTIONS)]
    names = list(dict.fromkeys(close))[:_MOST_SUGGESTIONS]
    return f"; did you mean {_either(names)}?" if names else f"; there are {', '.join(sorted(known))}"


def _either(names: Iterable[str]) -> str:
    *rest, last = names
    return f"{', '.join(rest)} or {last}" if rest else last


def _value(text: str, kind: Any) -> Any:  # noqa: ANN401 types, and any JSON value
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    kinds = _alternatives(kind)
    takes_text = str in kinds and not isinstance(value, str)
    return text if takes_text and not (value is None and type(None) in kinds) else value


def _item_kind(kind: Any) -> Any:  # noqa: ANN401 types
    """Give the type of an object's items; None for what is no object."""
    return next((get_args(each)[1] for each in _alternatives(kind) if get_origin(each) is dict), None)


def _alternatives(kind: Any) -> tuple[Any, ...]:  # noqa: ANN401 types
    return get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)
