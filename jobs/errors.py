"""Errors of the jobs layer: what a user can fix, and what a payload did."""


class UserError(ValueError):
    """One line that names the file, key or option and says what is allowed."""


class RefusalError(UserError):
    """The scheduler has decided not to take a job: it has nothing of what was asked."""


class PayloadError(RuntimeError):
    """The command of a job ended badly for good; the message says how."""
