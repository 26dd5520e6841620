"""payrelay ledger: statement, trial-balance, check."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated

import typer

from ops.cli.output import Format, Output, print_rows, say
from ops.cli.pipeline import FORMATS, current_settings, zoned
from outbox.clock import utc_now
from schemas.money import CNY

app = typer.Typer(help="The ledger, as an auditor reads it. Amounts are fen.", no_args_is_help=True)


@app.command()
def statement(
    account: Annotated[str, typer.Argument(help="e.g. bank_clearing, fee_income, suspense, merchant_payable:M1")],
    begin: Annotated[
        datetime | None, typer.Option("--from", formats=FORMATS, help="in PAYRELAY_ZONE if none is given")
    ] = None,
    end: Annotated[datetime | None, typer.Option("--to", formats=FORMATS, help="not included")] = None,
    currency: Annotated[str, typer.Option("--currency")] = CNY,
    output: Output = Format.TABLE,
) -> None:
    """Show an account's opening balance, entries and closing balance, by the time at which the facts happened."""
    from ops.health import reader_engine
    from ops.ledger import statement as lines_of

    settings = current_settings()
    begin, end = zoned(settings, begin), zoned(settings, end)
    if begin and end and begin > end:
        raise typer.BadParameter("--from lies after --to")
    with reader_engine(settings).connect() as connection:
        lines = lines_of(connection, account, currency=currency, begin=begin, end=end)
    print_rows([asdict(line) for line in lines], output)
    if len(lines) == 2 and not lines[0].balance_fen:
        say(f"no entry of {account!r} in {currency} until then: payrelay ledger trial-balance lists the accounts")


@app.command("trial-balance")
def trial_balance(
    at: Annotated[datetime | None, typer.Option("--at", formats=FORMATS, help="of the facts before then")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show every account's sums, now or at a time. Exit code 1 unless debits equal credits in every currency."""
    from ops.health import reader_engine
    from ops.ledger import trial_balance as balances_of

    settings = current_settings()
    with reader_engine(settings).connect() as connection:
        balances = balances_of(connection, at=zoned(settings, at))
    print_rows(
        [asdict(one) for one in balances],
        output,
        columns=("account", "currency", "debit_fen", "credit_fen", "balance_fen"),
    )
    off = {
        currency: difference
        for currency in sorted({one.currency for one in balances})
        if (difference := sum(one.debit_fen - one.credit_fen for one in balances if one.currency == currency))
    }
    say(f"debits less credits: {off}" if off else "debits equal credits")
    if off:
        raise typer.Exit(1)


@app.command()
def check(
    grace: Annotated[float, typer.Option("--grace", min=0, help="seconds in which a fact may be on its way")] = 60.0,
    output: Output = Format.TABLE,
) -> None:
    """Compare debits with credits, balances with entries, vouchers with settled payments and suspense. Exit code 1 on a difference."""
    from ops.health import reader_engine
    from ops.ledger import check as differences_of

    settings = current_settings()
    differences = differences_of(reader_engine(settings), before=utc_now() - timedelta(seconds=grace))
    print_rows([asdict(one) for one in differences], output, columns=("kind", "subject", "found"))
    say(f"{len(differences)} differences" if differences else "the ledger agrees with itself and with the payments")
    if differences:
        raise typer.Exit(1)
