"""The funds processor."""

from consumers.delivery import Processor
from consumers.funds.funds import credit_merchants
from schemas.topics import PAYMENT_ORDER

PROCESSOR = Processor(name="funds", service="funds", topics=(PAYMENT_ORDER,), handle=credit_merchants)
