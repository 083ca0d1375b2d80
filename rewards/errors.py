"""The one exception that means "the user can mend this": its message is shown alone, without a trace."""


class UserError(ValueError):
    """Names the field, the value got, the values possible, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of the error's message; the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
