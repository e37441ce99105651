"""The one exception for a user's mistake, and two common checks that raise it."""

import math
from numbers import Integral, Real
from typing import Any


class InputError(ValueError):
    """The input is wrong. The message is one sentence: what is wrong, where, and what would be right.

    The library raises it for bad arguments and bad files; the `diffsal` command prints its message and exits.
    """


def check_positive_integer(name: str, value: Any) -> None:
    """Raises an InputError unless an argument is a whole number above 0."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"`{name}` must be a positive integer, got {value!r}")


def check_finite(name: str, value: Any) -> None:
    """Raises an InputError unless an argument is a finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"`{name}` must be a finite number, got {value!r}")
