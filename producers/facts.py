"""Every fact that producers announce; a consumer's facts stand in its effects.py. Pure."""

from __future__ import annotations

from producers.bank.facts import FACTS as BANK
from producers.payments.facts import FACTS as PAYMENTS

FACTS = (*PAYMENTS, *BANK)
