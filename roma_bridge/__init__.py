"""The client: code that plans, such as ROMA, submits here and gets tested code back.

Its names are imported when the first of them is used: Pydantic and redis-py take a second, which `ptc-enqueue --help`
and shell completion have not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roma_bridge.surface import *  # noqa: F403 what it lists is the list


def __getattr__(name: str) -> Any:  # noqa: ANN401 whatever is exported
    if name == "__all__" or not name.startswith("_"):
        surface = import_module("roma_bridge.surface")
        if name == "__all__" or name in surface.__all__:
            return getattr(surface, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *import_module("roma_bridge.surface").__all__]
