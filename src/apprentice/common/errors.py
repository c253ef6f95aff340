"""The one exception that a user is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. The message says what was expected, what was found and what to do.

    The command line prints it without a traceback; everything else is a bug.
    """


class FileError(UserError, ValueError):
    """A file that cannot be read, or does not hold what it should."""


def meant(word: str, known: Iterable[object], otherwise: str = "name one of these") -> str:
    """The advice "did you mean ...?" if one of the `known` names is near to `word`."""
    near = difflib.get_close_matches(str(word).lower(), {str(name).lower(): name for name in known}, 1, 0.6)
    return f"did you mean {next(str(n) for n in known if str(n).lower() == near[0])}?" if near else otherwise
