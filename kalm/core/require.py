"""How a constructor refuses a value."""

from __future__ import annotations

from kalm.core.errors import KalmError


def require(is_met: bool, name: str, value: object, allowed: str) -> None:
    """Stop at construction on a value out of range."""
    if not is_met:
        raise KalmError(f"{name} is {value}; it must be {allowed}")
