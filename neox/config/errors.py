"""The one exception that means: the user's input is wrong, and this single line says how."""


class UserError(ValueError):
    """Wrong input: one line that names the key or file and what is allowed; commands print it and exit 2."""
