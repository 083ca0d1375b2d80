"""UserError, the exception for what a user can fix: its message is shown without a traceback."""


class UserError(ValueError):
    """A mistake of the user. The message names the field, the value given, the possible values, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of the error's message, or the name of its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
