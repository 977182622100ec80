"""The one error that every command knows how to show."""


class UserError(Exception):
    """Something that the user can mend. The message says what was wrong, where, and what to do."""
