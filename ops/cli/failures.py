"""What an operator reads when a command ends with an error: one line, and the exit code that docs/reference/cli.md promises.

Errors of libraries are known by their classes only where the library was imported: nothing is imported to explain an error.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outbox.errors import Misused, PayrelayError, Unreachable

UNFORESEEN = 1
USAGE = Misused.exit_code
UNREACHABLE = Unreachable.exit_code

TRACEBACK = "PAYRELAY_TRACEBACK"
"""Set to 1, a failing command prints where it failed, too."""

AWAY = ("08", "57P")
"""Classes of PostgreSQL's error codes that mean: it does not answer, or not yet. Source: PostgreSQL documentation, appendix A."""
REFUSES = ("28", "3D", "53300")
"""… and: it answers, and lets nobody in."""


@dataclass(frozen=True)
class Failure:
    """How a command ends."""

    message: str
    exit_code: int
    details: tuple[str, ...] = ()
    """Lines below it: an error's own, never made of a line end in somebody's text."""


def require_text(arguments: Sequence[str]) -> None:
    """Every argument is text. Raises Misused for bytes that are none in this locale, and for a zero byte."""
    for argument in arguments:
        if "\0" in argument or (not argument.isprintable() and any("\ud800" <= sign <= "\udfff" for sign in argument)):
            raise Misused(f"an argument is no text in this locale: {argument!r}")


def explained(error: BaseException) -> Failure:
    """Return what an error is to an operator. Pure."""
    if isinstance(error, PayrelayError):
        return Failure(error.message, error.exit_code, error.details)
    for explain in (_of_usage, _of_settings, _of_postgres, _of_kafka, _of_requests, _of_the_system):
        if (failure := explain(error)) is not None:
            return failure
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {os.path.basename(where[0].filename)}:{where[0].lineno}" if where else ""  # noqa: PTH119 - a name
    return Failure(
        f"unexpected {type(error).__name__}{place}: {_first_line(error)}; {TRACEBACK}=1 shows the traceback", UNFORESEEN
    )


def traceback_of(error: BaseException) -> str:
    """Return an error's traceback where the environment asks for it; empty otherwise."""
    from outbox.environment import Environment  # here: no command needs it that ends well

    wanted = Environment().payrelay_traceback not in ("", "0")
    return "".join(traceback.format_exception(error)) if wanted else ""


def _of_usage(error: BaseException) -> Failure | None:
    if _is(error, "typer", "Abort"):
        return Failure("aborted: nothing was done", UNFORESEEN)
    if not hasattr(error, "format_message"):  # of click, which typer brings in a copy of its own
        return None
    context: Any = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return Failure(f"a command is missing: {context.command_path} --help lists them", USAGE)
    more = f"; {context.command_path} --help" if context is not None else ""
    return Failure(f"{error.format_message().strip().rstrip('.')}{more}", int(getattr(error, "exit_code", USAGE)))


def _of_settings(error: BaseException) -> Failure | None:
    if not _is(error, "pydantic_core", "ValidationError"):
        if _is(error, "pydantic_settings", "SettingsError"):
            return Failure(
                f"a setting cannot be read: {_first_line(error)}. Correct it as docs/reference/settings.md says", USAGE
            )
        return None
    wrong: Any = error
    if wrong.title != "Settings":
        return None
    problems = "; ".join(
        f"PAYRELAY_{'__'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
        for problem in wrong.errors(include_url=False, include_input=False, include_context=False)
    )
    return Failure(f"a setting is wrong: {problems}. Correct it as docs/reference/settings.md says", USAGE)


def _of_postgres(error: BaseException) -> Failure | None:
    if _is(error, "sqlalchemy.exc", "ArgumentError"):
        return Failure("a DSN is not of the form postgresql://role:password@host:port/database: correct it as docs/reference/settings.md says",
                       USAGE)  # fmt: skip
    if _is(error, "sqlalchemy.exc", "TimeoutError"):
        return Failure("all connections to PostgreSQL stayed in use: repeat the command in a moment", UNREACHABLE)
    cause = getattr(error, "orig", None) if _is(error, "sqlalchemy.exc", "DBAPIError") else error
    if cause is None or not _is(cause, "psycopg", "Error"):
        return None
    code, said = str(getattr(cause, "sqlstate", None) or ""), _first_line(cause)
    if _is(cause, "psycopg", "OperationalError") and (not code or code.startswith(AWAY)) and code != "57014":
        return Failure(f"PostgreSQL does not answer: {said}. Is it up? payrelay status", UNREACHABLE)
    if code.startswith(REFUSES):
        return Failure(
            f"PostgreSQL refuses the connection: {said}. Check the DSNs: docs/reference/settings.md", UNREACHABLE
        )
    if code == "57014":
        return Failure(
            f"PostgreSQL answers, but a statement ran past its time limit: {said}. Repeat the command, or ask it for less",
            UNFORESEEN,
        )
    if code in ("42P01", "3F000", "42703", "42883"):
        return Failure(
            f"the database does not have this version's schema: {said}. Bring it up to date: payrelay migrate",
            UNFORESEEN,
        )
    if code.startswith("22") or _is(cause, "psycopg", "DataError"):
        return Failure(f"PostgreSQL refuses a value that you gave: {said}", USAGE)
    return Failure(f"PostgreSQL: {said}", UNFORESEEN)


def _of_kafka(error: BaseException) -> Failure | None:
    if _is(error, "aiokafka.errors", "KafkaError"):
        return Failure(f"Kafka does not answer: {type(error).__name__} {_first_line(error)}".rstrip(), UNREACHABLE)
    if not _is(error, "confluent_kafka", "KafkaException"):
        return None
    cause: Any = error.args[0] if error.args else error
    if not hasattr(cause, "code"):
        return Failure(f"Kafka: {_first_line(error)}", UNREACHABLE)
    if cause.code() < 0 and cause.name() != "_INVALID_ARG":  # librdkafka's own codes: the broker has said nothing
        return Failure(f"Kafka does not answer: {cause.str()}", UNREACHABLE)
    return Failure(f"Kafka refuses: {cause.str()}", UNFORESEEN)


def _of_requests(error: BaseException) -> Failure | None:
    if _is(error, "requests.exceptions", "RequestException"):
        return Failure(f"{type(error).__name__}: {_first_line(error)}", UNREACHABLE)
    return None


def _of_the_system(error: BaseException) -> Failure | None:
    if isinstance(error, UnicodeError):
        return Failure(f"a text cannot be read or written: {_first_line(error)}", USAGE)
    if not isinstance(error, OSError):
        return None
    if isinstance(error, ConnectionError | TimeoutError):
        return Failure(f"a server does not answer: {_first_line(error) or type(error).__name__}", UNREACHABLE)
    if error.filename is not None:
        return Failure(f"{os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename}: "
                       f"{error.strerror}", UNFORESEEN)  # fmt: skip
    return Failure(f"the operating system refuses: {error.strerror or _first_line(error)}", UNFORESEEN)


def _is(error: BaseException, module: str, name: str) -> bool:
    """Return whether an error is of a class of a module, which was imported if it is."""
    known = getattr(sys.modules.get(module), name, None)
    return isinstance(known, type) and isinstance(error, known)


def _first_line(error: BaseException) -> str:
    return next((line for line in map(str.strip, str(error).splitlines()) if line), "")[:500]
