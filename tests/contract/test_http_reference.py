"""docs/reference/http.md names every route, every field and every error that there is, and no route that is not."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import fields
from pydantic import SecretStr

from consumers.notification.api import PARAMETERS
from consumers.notification.api import create_app as create_notification
from outbox.http import protocol as http_protocol
from outbox.settings import Settings
from producers.bank.api import create_app as create_bank
from producers.payments.api import create_app as create_payments
from producers.payments.orders import PaymentRequest
from schemas.bank import BankNotification
from tests.pipeline import ROOT

PAGE = (ROOT / "docs/reference/http.md").read_text()
SECRET = SecretStr("whsec_" + "bGluazEy" * 5)
DSN = SecretStr("postgresql://x:x@127.0.0.1:1/x")
SETTINGS = Settings(
    dsn={"payments": DSN, "bank": DSN, "notification": DSN}, bank_link_secret=SECRET, bank_notify_secret=SECRET
)
SERVICES = {"Payments": create_payments, "Bank": create_bank, "Notification": create_notification}


def section(title: str) -> str:
    """Return a section of the page."""
    match = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, title
    return match[1]


@pytest.mark.parametrize("title", SERVICES)
def test_the_routes_of_a_service_are_those_of_its_section(title: str) -> None:
    app: Any = SERVICES[title](SETTINGS)
    served = {(method, route.path) for route in app.routes for method in route.methods - {"HEAD"}}
    described = set(re.findall(r"^### `([A-Z]+) ([^`?]+)", section(title), re.MULTILINE))
    assert described == served - {("GET", "/health")}


@pytest.mark.parametrize("name", [field.name for field in (*fields(PaymentRequest), *fields(BankNotification))])
def test_every_field_of_a_request_is_described(name: str) -> None:
    assert f"| `{name}` |" in section("Payments")


def test_every_parameter_is_described() -> None:
    assert [name for name in PARAMETERS if f"| `{name}` |" not in section("Notification")] == []


def test_every_error_is_described() -> None:
    said = set(re.findall(r"\| ([45]\d\d) \| `(\w+)`", PAGE)) - {("400", "refused")}  # agreed with the bank
    refusals = [refusal for refusal in vars(http_protocol).values() if isinstance(refusal, tuple) and len(refusal) == 4]
    raised = {(str(refusal[0]), refusal[1]) for refusal in refusals}
    for path in (
        "outbox/http/app.py",
        "producers/payments/api.py",
        "producers/bank/api.py",
        "consumers/notification/api.py",
    ):
        for node in ast.walk(ast.parse(Path(ROOT / path).read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("HttpError", "_error"):
                status, code = node.args[:2]
                if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                    raised.add((str(status.value), str(code.value)))
    assert len(raised) > 15
    assert raised - said == set()
    assert said - raised == set()
