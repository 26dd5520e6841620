"""The main job on the real stack, and a proof that sees what was tampered with."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import requests
from sqlalchemy import text

from ops.demo.journal import Journal, read_journal
from ops.demo.proof import prove
from ops.demo.run import run_demo
from ops.ledger.reads import check
from outbox.clock import utc_now
from schemas.signature import signed_headers
from tests.pipeline import engine_of
from tests.providers import Stack


@pytest.fixture(scope="module")
def journal(stack: Stack) -> Journal:
    """A run of 120 orders that holds."""
    folder = stack.embedded
    proof, figures = run_demo(stack.settings, folder, orders=120, seed=3, rate=None, watch=lambda *_: None)
    assert proof.holds, proof.findings
    assert proof.settled + proof.failed == proof.orders == 120
    assert proof.failed > 0
    assert proof.effects == {
        "funds": proof.settled,
        "points": proof.settled,
        "accounting": proof.settled,
        "notification": 120,
    }
    assert 0 < figures["latency_ms"]["commit_to_kafka"]["p50"] < figures["latency_ms"]["commit_to_ledger"]["p50"]
    return read_journal(max((folder.path / "journals").glob("*.jsonl")))


@pytest.mark.parametrize(("tamper", "heal", "named", "count"), [
    (
        "WITH gone AS (DELETE FROM points.entry WHERE account_no = (SELECT account_no FROM points.entry WHERE account_no LIKE :like LIMIT 1)"
        " AND ctid = (SELECT min(ctid) FROM points.entry WHERE account_no LIKE :like AND account_no = (SELECT account_no FROM points.entry WHERE account_no LIKE :like LIMIT 1)) RETURNING *)"
        " INSERT INTO public.kept SELECT to_jsonb(gone) FROM gone",
        "INSERT INTO points.entry SELECT (jsonb_populate_record(NULL::points.entry, row)).* FROM public.kept",
        "no points effect", "lost",
    ),
    (
        "UPDATE funds.account SET balance_fen = balance_fen * 2 WHERE account_no = (SELECT min(account_no) FROM funds.account WHERE account_no LIKE :like)",
        "UPDATE funds.account SET balance_fen = balance_fen / 2 WHERE account_no = (SELECT min(account_no) FROM funds.account WHERE account_no LIKE :like)",
        "funds balance of", "doubled",
    ),
    (
        "UPDATE funds.account SET balance_fen = balance_fen - 1 WHERE account_no = (SELECT min(account_no) FROM funds.account WHERE account_no LIKE 'payer:' || :like)",
        "UPDATE funds.account SET balance_fen = balance_fen + 1 WHERE account_no = (SELECT min(account_no) FROM funds.account WHERE account_no LIKE 'payer:' || :like)",
        "funds balance of payer:", "doubled",
    ),
    (
        "INSERT INTO bank.transaction SELECT :like || 'x', 'P-nobody', account_no, 1, 'CNY', 'SUCCESS', NULL, now() FROM bank.account WHERE account_no LIKE :like LIMIT 1",
        "DELETE FROM bank.transaction WHERE payment_no = 'P-nobody'",
        "order P-nobody is missing", "unsettled",
    ),
])  # fmt: skip
def test_the_proof_names_what_was_tampered_with(
    stack: Stack, journal: Journal, tamper: str, heal: str, named: str, count: str
) -> None:
    assert prove(stack.settings, journal).holds
    like = {"like": f"{journal.run}-%"}
    with engine_of(stack.settings, "owner").begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS public.kept (row jsonb)"))
        connection.execute(text("TRUNCATE public.kept"))
        connection.execute(text(tamper), like)
    proof = prove(stack.settings, journal)
    with engine_of(stack.settings, "owner").begin() as connection:
        connection.execute(text(heal), like)
    assert not proof.holds
    assert getattr(proof, count) == 1
    assert any(named in finding for finding in proof.findings), proof.findings
    assert prove(stack.settings, journal).holds


def test_the_proof_names_a_dropped_voucher(stack: Stack, journal: Journal) -> None:
    untriggered = text("SET LOCAL session_replication_role = replica")  # nobody else gets past the ledger's triggers
    with engine_of(stack.settings, "owner").begin() as connection:
        connection.execute(untriggered)
        number, business_no = connection.execute(
            text("SELECT voucher_no, business_no FROM accounting.voucher JOIN accounting.entry USING (voucher_no) WHERE account LIKE :like LIMIT 1"),
            {"like": f"merchant_payable:{journal.run}-%"},
        ).one()  # fmt: skip
        rows: dict[str, list[dict[str, Any]]] = {}
        for table in ("entry", "voucher"):
            deleted = connection.execute(
                text(f"DELETE FROM accounting.{table} WHERE voucher_no = :no RETURNING *"), {"no": number}
            )
            rows[table] = [dict(row._mapping) for row in deleted]
    proof = prove(stack.settings, journal)
    differences = check(engine_of(stack.settings, "ops"), before=utc_now())
    with engine_of(stack.settings, "owner").begin() as connection:
        connection.execute(untriggered)
        for table in ("voucher", "entry"):
            for row in rows[table]:
                names = ", ".join(row)
                values = ", ".join(f":{name}" for name in row)
                connection.execute(
                    text(f"INSERT INTO accounting.{table} ({names}) OVERRIDING SYSTEM VALUE VALUES ({values})"), row
                )
    assert not proof.holds
    assert not proof.ledger_balanced
    assert proof.lost >= 1
    assert any(business_no in finding for finding in proof.findings), proof.findings
    reasons = {difference.found for difference in differences if difference.subject == business_no}
    assert reasons == {"has no voucher that stands"}
    assert any(difference.kind == "ledger" for difference in differences), "a balance without its entries"
    assert prove(stack.settings, journal).holds
    subjects = {difference.subject for difference in check(engine_of(stack.settings, "ops"), before=utc_now())}
    assert business_no not in subjects


def test_services_refuse_what_is_not_signed_and_do_not_say_why(stack: Stack) -> None:
    payments = stack.settings.payments_url
    secret = stack.settings.bank_notify_secret.get_secret_value()
    body = b'{"transaction_no":"B","payment_no":"P","amount_fen":1,"currency":"CNY","status":"SUCCESS"}'
    good = signed_headers(secret, message_id="e2e-refused", at=utc_now(), body=body)
    attempts = [
        {},
        good | {"webhook-signature": "v1,AAAA"},
        good | {"webhook-id": "other"},
        signed_headers(secret, message_id="e2e-old", at=utc_now() - timedelta(minutes=6), body=body),
    ]
    answers = {
        (answer.status_code, answer.text)
        for headers in attempts
        if (answer := requests.post(f"{payments}/bank/notifications", data=body, headers=headers, timeout=10))
        is not None
    }
    assert answers == {(400, "refused")}
    unsigned = requests.post(f"{payments}/payments", data=b"{}", timeout=10)
    assert (unsigned.status_code, unsigned.json()["error"]) == (401, "unauthorized")
    too_large = requests.post(f"{payments}/payments", data=b"x" * 70_000, timeout=10)
    assert too_large.status_code == 413
    assert (
        requests.post(
            f"{stack.settings.bank_url}/pay", params={"link": "{}", "signature": "v1,x"}, timeout=10
        ).status_code
        == 403
    )
