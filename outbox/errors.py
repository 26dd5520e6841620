"""Errors, one tree; a class docstring is the default message.

PayrelayError
├── NotInTransaction
├── Unreachable              exit code 3
├── Refused                  exit code 1: asked for what must not be done
└── NotReady                 exit code 1: waited, and the deadline passed
"""

from __future__ import annotations


class PayrelayError(Exception):
    """Something went wrong."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").splitlines()[0])


class NotInTransaction(PayrelayError):
    """Events are recorded only inside the transaction of the business rows: begin one first."""


class Unreachable(PayrelayError):
    """A part cannot be reached."""

    exit_code = 3


class Refused(PayrelayError):
    """The request must not be carried out."""


class NotReady(PayrelayError):
    """The deadline passed before the part was ready."""
