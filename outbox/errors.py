"""Errors, one tree; a class docstring is the default message.

PayrelayError
├── NotInTransaction
├── Unreachable              exit code 3
├── AheadOfClock             exit code 1: try again; transient for consumers, 503 over HTTP
├── Refused                  exit code 1: asked for what must not be done
│   └── Misused              exit code 2: a value or setting that cannot be meant
│       └── UnknownName      exit code 2: a name that nothing has
└── NotReady                 exit code 1: waited, and the deadline passed
"""

from __future__ import annotations

from collections.abc import Sequence


class PayrelayError(Exception):
    """Something went wrong."""

    exit_code = 1

    def __init__(self, message: str | None = None, *, details: Sequence[str] = ()) -> None:
        self.message = message or (type(self).__doc__ or "").splitlines()[0]
        self.details = tuple(details)
        """Lines below the message, e.g. the end of a log. A line end within one of them, or in the message, is text of somebody's."""
        super().__init__("\n".join((self.message, *self.details)))


class NotInTransaction(PayrelayError):
    """Events are recorded only inside the transaction of the business rows: begin one first."""


class Unreachable(PayrelayError):
    """A part cannot be reached."""

    exit_code = 3


class AheadOfClock(PayrelayError):
    """The database's clock was set back, and this session's ids are ahead of it: it is closed; try again, in a new one."""


class Refused(PayrelayError):
    """The request must not be carried out."""


class Misused(Refused):
    """A value that was typed or set cannot be meant."""

    exit_code = 2


class UnknownName(Misused):
    """Nothing has this name."""


class NotReady(PayrelayError):
    """The deadline passed before the part was ready."""


def message_of(error: BaseException) -> str:
    """Return an error's first line; its type's name where it has no text, as a time-out has none. Of a database's error, the driver's.

    >>> message_of(TimeoutError()), message_of(ValueError("no such thing\\nat all"))
    ('TimeoutError', 'no such thing')
    """
    said = getattr(error, "orig", None) or error
    return next(iter(str(said).splitlines()), "") or type(said).__name__
