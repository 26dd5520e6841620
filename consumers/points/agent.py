"""The points processor."""

from consumers.delivery.processor import Processor
from consumers.points.points import add_points
from schemas.topics import PAYMENT_ORDER

PROCESSOR = Processor(name="points", service="points", topics=(PAYMENT_ORDER,), handle=add_points)
