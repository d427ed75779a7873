"""The installation's defaults, filled into what a plan's author left unset before anything is hashed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from ptc_contracts import CacheStrategy, ConfigurationError, LLMProvider, PTCExecutionPlan

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_NONE = {"none", "null", "-"}


def with_defaults(
    plan: PTCExecutionPlan, set_by_author: Collection[str], environ: Mapping[str, str] = os.environ
) -> PTCExecutionPlan:
    """Fill the fields that the plan leaves unset from the variables in `_FIELDS`.

    Raises:
        ConfigurationError: a variable's value does not fit its field; the message names the variable.
    """
    update: dict[str, Any] = {}
    for variable, field in _FIELDS:
        text = environ.get(variable, "").strip()
        if text and field not in set_by_author and field not in update:
            update[field] = _read(variable, field, text)
    if not update:
        return plan
    return plan.model_copy(update=update)


def default_expires(environ: Mapping[str, str] = os.environ) -> float | None:
    """Read `PTC_EXPIRES`: seconds that a run may wait for its first start; None if it may wait for ever.

    Raises:
        ConfigurationError: it is not a number above zero that can be used.
    """
    text = environ.get("PTC_EXPIRES", "").strip()
    return read_expires("PTC_EXPIRES", text) if text else None


def read_expires(name: str, value: float | str) -> float:
    """Read how many seconds a run may wait for its first start.

    Raises:
        ConfigurationError: it is not a number above zero; the message holds the name.
    """
    try:
        return TypeAdapter(_Expires).validate_python(value)
    except ValidationError:
        raise ConfigurationError(
            f"{name}={value!r} is not a number of seconds above 0 and up to {_LONGEST_EXPIRES:,}"
        ) from None


def _no_flag(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("True is no second")  # noqa: TRY004 Pydantic words ValueErrors
    return value


_LONGEST_EXPIRES = 10 * 365 * 24 * 3600
_Expires = Annotated[float, BeforeValidator(_no_flag), Field(gt=0, le=_LONGEST_EXPIRES, allow_inf_nan=False)]


_FIELDS = (
    ("PTC_PRIMARY_LLM", "primary_llm"),
    ("LLM_PROVIDER", "primary_llm"),
    ("PTC_FALLBACK_LLM", "fallback_llm"),
    ("DEFAULT_TIMEOUT", "timeout_seconds"),
    ("DEFAULT_MAX_ITERATIONS", "max_iterations"),
    ("PTC_CACHE_ENABLED", "cache_strategy"),
    ("PTC_CACHE_TTL", "cache_ttl"),
)
"""Variables and the fields they fill; of two for one field the first that is set counts."""


def _read(variable: str, field: str, text: str) -> Any:  # noqa: ANN401 the field's own type
    try:
        if variable == "PTC_CACHE_ENABLED":
            enabled = TypeAdapter(bool).validate_python(text)
            return CacheStrategy.SMART if enabled else CacheStrategy.NEVER
        if field == "primary_llm":
            return LLMProvider("claude" if text.lower() == "anthropic" else text.lower())
        if field == "fallback_llm":
            return None if text.lower() in _NONE else LLMProvider(text.lower())
        info = PTCExecutionPlan.model_fields[field]
        return TypeAdapter(info.rebuild_annotation()).validate_python(text)
    except (ValueError, ValidationError):
        raise ConfigurationError(f"{variable}={text!r} does not fit the plan's field {field}") from None
