"""A policy's parameters from one setting: its own fields, by name. Pure."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_type_hints

from services.gateway.routing.policy import RoutingPolicy
from shared.config import parser_of


def with_options(policy: type[RoutingPolicy], texts: Mapping[str, str], **defaults: Any) -> RoutingPolicy:
    """Return a policy whose fields have the values of `texts`, else `defaults`, else the class's own.

    Raises ValueError, which names the option, for a field that the policy does not have and for a value that is not of
    its type.
    """
    kind: Any = policy
    known = [field.name for field in fields(kind)]
    hints = get_type_hints(kind)
    values = dict(defaults)
    for name, text in texts.items():
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name}: not an option of this policy ({has})")
        try:
            values[name] = parser_of(hints[name])(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error} (got {text!r})") from None
    made: RoutingPolicy = kind(**values)
    return made
