"""The accounting processor."""

from consumers.accounting.ledger import post
from consumers.delivery.processor import Processor
from schemas.topics import FUNDS_TRANSFER, PAYMENT_ORDER

PROCESSOR = Processor(name="accounting", service="accounting", topics=(PAYMENT_ORDER, FUNDS_TRANSFER), handle=post)
