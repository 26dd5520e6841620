"""The notification processor: it only writes the record; the sender sends."""

from consumers.delivery import Processor
from consumers.notification.records import body_of, resend, write_records
from schemas.topics import PAYMENT_ORDER

PROCESSOR = Processor(
    name="notification",
    service="notification",
    topics=(PAYMENT_ORDER,),
    handle=write_records,
    touches_outside=lambda event: body_of(event) is not None,
    resend=resend,
)
