"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend. The message says what was expected, what was found and what to do.

    The command line prints it without a traceback; everything else is a bug and keeps its traceback.
    """
