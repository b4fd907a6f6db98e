"""Errors of the jobs layer: what a user can fix, and what a payload did."""


class UserError(ValueError):
    """One line that names the file, key or option and says what is allowed."""


class RefusalError(UserError):
    """The scheduler has decided not to take a job: it has nothing of what was asked."""


class LauncherError(RuntimeError):
    """A launcher ended before any node of the launch had answered; the message has its last line."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class PayloadError(RuntimeError):
    """The command of a job ended badly for good; the message says how."""
