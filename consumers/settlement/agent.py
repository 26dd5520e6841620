"""The settlement processor: payments' own, with its role, inbox and progress."""

from consumers.delivery.processor import Processor
from consumers.settlement.settlement import finish_balance_payments
from schemas.topics import FUNDS_TRANSFER

PROCESSOR = Processor(name="settlement", service="payments", topics=(FUNDS_TRANSFER,), handle=finish_balance_payments)
