"""The funds processor."""

from consumers.delivery.processor import Processor
from consumers.funds.funds import move_funds
from schemas.topics import PAYMENT_ORDER

PROCESSOR = Processor(name="funds", service="funds", topics=(PAYMENT_ORDER,), handle=move_funds)
