"""The one exception that means "the user can mend this": its message is shown alone, without a trace."""


class UserError(ValueError):
    """Names the field, the value got, the values possible, and what to do."""
