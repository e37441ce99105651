"""The one exception for a user's mistake."""


class InputError(ValueError):
    """The input is wrong. The message is one sentence: what is wrong, where, and what would be right.

    The library raises it for bad arguments and bad files; the `diffsal` command prints its message and exits.
    """
