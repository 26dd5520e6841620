"""payrelay ledger: accounts, statement, trial-balance, check, suspense, reverse, correct."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime, timedelta
from getpass import getuser
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ops.cli.context import current_settings
from ops.cli.intent import is_meant
from ops.cli.options import DAY_S, Output, Yes, decimal, whole
from ops.cli.output import Format, print_rows, say
from ops.cli.times import Zone, instant, span, time_option
from outbox.clock import utc_now
from schemas.money import AMOUNT_FEN_MAX, CNY
from schemas.numeric import parse_whole

if TYPE_CHECKING:  # commands import what they run: --help is quick
    from sqlalchemy import Connection

    from consumers.accounting.entries import Entry

app = typer.Typer(help="Read, check and correct the ledger. Amounts are in fen.", no_args_is_help=True)


@app.command()
def accounts(output: Output = Format.TABLE) -> None:
    """Show the chart of accounts: what each account is for, which side it grows on, and its balance."""
    from ops.ledger.reads import accounts as chart_of
    from ops.pipeline.health import reader_engine

    with reader_engine(current_settings()).connect() as connection:
        print_rows([asdict(account) for account in chart_of(connection)], output)


@app.command()
def statement(
    account: Annotated[
        str, typer.Argument(help="account code, e.g. bank_clearing, fee_income, suspense, merchant_payable:M1")
    ],
    begin: Annotated[datetime | None, time_option("--from", "facts from this time on")] = None,
    end: Annotated[datetime | None, time_option("--to", "facts before this time")] = None,
    tz: Zone = "",
    currency: Annotated[str, typer.Option("--currency", help="currency code")] = CNY,
    output: Output = Format.TABLE,
) -> None:
    """Show an account's opening balance, entries and closing balance, ordered by when the facts happened."""
    from ops.ledger.reads import statement as lines_of
    from ops.pipeline.health import reader_engine

    begin, end = span(begin, end, tz)
    _require_account(account)
    with reader_engine(current_settings()).connect() as connection:
        lines = lines_of(connection, account, currency=currency, begin=begin, end=end)
    print_rows([asdict(line) for line in lines], output)
    if len(lines) == 2 and not lines[0].balance_fen:
        say(
            f"account {account!r} has no entry in {currency} until then. Accounts with entries: payrelay ledger trial-balance"
        )


@app.command("trial-balance")
def trial_balance(
    at: Annotated[datetime | None, time_option("--at", "count only facts before this time")] = None,
    tz: Zone = "",
    output: Output = Format.TABLE,
) -> None:
    """Show every account's sums, now or at a time. Exit code 1 unless debits equal credits in every currency."""
    from ops.ledger.reads import trial_balance as balances_of
    from ops.pipeline.health import reader_engine

    at = instant(at, tz)
    with reader_engine(current_settings()).connect() as connection:
        balances = balances_of(connection, at=at)
    print_rows(
        [asdict(balance) for balance in balances],
        output,
        columns=("account", "currency", "debit_fen", "credit_fen", "balance_fen"),
    )
    off = {
        currency: difference
        for currency in sorted({balance.currency for balance in balances})
        if (
            difference := sum(
                balance.debit_fen - balance.credit_fen for balance in balances if balance.currency == currency
            )
        )
    }
    say(
        f"debits do not equal credits, the difference is {off}: payrelay ledger check"
        if off
        else "debits equal credits"
    )
    if off:
        raise typer.Exit(1)


@app.command()
def check(
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            parser=decimal(0, DAY_S),
            help="ignore facts younger than this many seconds, which may be on their way",
        ),
    ] = 60.0,
    output: Output = Format.TABLE,
) -> None:
    """Compare debits with credits, balances with entries, and vouchers with settled payments, suspense and deposits. Exit code 1 on a difference."""
    from ops.ledger.reads import check as differences_of
    from ops.pipeline.health import reader_engine

    settings = current_settings()
    differences = differences_of(reader_engine(settings), before=utc_now() - timedelta(seconds=grace))
    print_rows([asdict(listed) for listed in differences], output, columns=("kind", "subject", "found"))
    say(f"{len(differences)} differences" if differences else "the ledger agrees with itself and with the payments")
    if differences:
        raise typer.Exit(1)


@app.command()
def suspense(
    payment: Annotated[str, typer.Option("--payment", help="payment number, as the bank named it")] = "",
    reason: Annotated[str, typer.Option("--reason", help="part of the reason, e.g. expired")] = "",
    also_resolved: Annotated[
        bool, typer.Option("--all", help="also show resolved items, whose voucher was reversed")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", parser=whole(1, 10_000), help="items at most")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """Show money that the bank has taken but no order could accept, oldest first."""
    from ops.ledger.reads import SuspenseItem
    from ops.ledger.reads import suspense as suspense_of
    from ops.pipeline.health import reader_engine

    with reader_engine(current_settings()).connect() as connection:
        items = suspense_of(connection, payment_no=payment, reason=reason, also_resolved=also_resolved, limit=limit)
    print_rows([asdict(item) for item in items], output, columns=tuple(SuspenseItem.__dataclass_fields__))
    say(
        f"{len(items)} in suspense"
        + (f", the {limit} oldest at most: --limit shows more" if len(items) == limit else "")
    )


Reason = Annotated[str, typer.Option("--reason", help="why; kept on the voucher")]
Actor = Annotated[str, typer.Option("--actor", help="who does it; default: your user name")]
Execute = Annotated[bool, typer.Option("--execute", help="post it; without it, only show it")]


@app.command()
def reverse(
    voucher_no: Annotated[int, typer.Argument(parser=whole(1), help="number of the voucher")],
    reason: Reason,
    actor: Actor = "",
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Reverse a voucher by one with the same entries on the opposite sides. Without --execute, only show it."""
    from consumers.accounting.ledger import reversal_of, reverse_voucher

    reason, actor, at = _nonempty("--reason", reason), _nonempty("--actor", actor or getuser()), utc_now()
    with _accounting() as connection:
        voucher = reversal_of(connection, voucher_no, reason=reason, actor=actor, at=at)
    _show(voucher.entries, output)
    if is_meant(execute=execute, yes=yes, does="posts it", question="post it?"):
        with _accounting() as connection:
            posted_no = reverse_voucher(connection, voucher_no, reason=reason, actor=actor, at=at)
        say(f"posted as voucher {posted_no}")


@app.command()
def correct(
    voucher_no: Annotated[int, typer.Argument(parser=whole(1), help="number of a reversed voucher")],
    reason: Reason,
    debit: Annotated[list[str], typer.Option("--debit", metavar="ACCOUNT=FEN", help="a debit entry; may be repeated")],
    credit: Annotated[
        list[str], typer.Option("--credit", metavar="ACCOUNT=FEN", help="a credit entry; may be repeated")
    ],
    actor: Actor = "",
    execute: Execute = False,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Post a voucher in place of a reversed one. Without --execute, only show it."""
    from consumers.accounting.ledger import correct_voucher, correction_of

    entries = [*(_entry("D", given) for given in debit), *(_entry("C", given) for given in credit)]
    reason, actor, at = _nonempty("--reason", reason), _nonempty("--actor", actor or getuser()), utc_now()
    with _accounting() as connection:
        try:
            voucher = correction_of(connection, voucher_no, entries, reason=reason, actor=actor, at=at)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    _show(voucher.entries, output)
    if is_meant(execute=execute, yes=yes, does="posts it", question="post it?"):
        with _accounting() as connection:
            posted_no = correct_voucher(connection, voucher_no, entries, reason=reason, actor=actor, at=at)
        say(f"posted as voucher {posted_no}")


def _accounting() -> AbstractContextManager[Connection]:
    """Return a transaction with accounting's role."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    from outbox.database import driver_url

    return create_engine(driver_url(current_settings().dsn_of("accounting")), poolclass=NullPool).begin()


def _nonempty(option: str, value: str) -> str:
    if not value.strip():
        raise typer.BadParameter(f"{option} is empty: give it, because the voucher keeps it")
    return value.strip()


def _entry(side: Literal["D", "C"], given: str) -> Entry:
    from consumers.accounting.entries import Entry

    account, _, amount = given.rpartition("=")
    try:
        amount_fen = parse_whole(amount, low=1, high=AMOUNT_FEN_MAX)
    except ValueError as error:
        raise typer.BadParameter(
            f"{given[:80]!r} is not ACCOUNT=FEN, e.g. merchant_payable:M1=1200: {error}"
        ) from error
    _require_account(account)
    return Entry(account=account, side=side, amount_fen=amount_fen)


def _require_account(account: str) -> None:
    from schemas.accounts import MERCHANT_PAYABLE, PAYER_BALANCE, general_account

    try:
        general_account(account)
    except ValueError as error:
        raise typer.BadParameter(f"{error}. The chart is shown by: payrelay ledger accounts") from error
    code, _, party = account.partition(":")
    if (code in (MERCHANT_PAYABLE, PAYER_BALANCE)) != bool(party):
        raise typer.BadParameter(
            f"account {account!r}: {code} {'is one account: leave out the party' if party else 'has an account for each party: write ' + code + ':PARTY'}"
        )


def _show(entries: Sequence[Entry], output: Format) -> None:
    print_rows([asdict(entry) for entry in entries], output)
