"""The notification processors, the platform's and the bank's: they only write the record; the sender sends."""

from consumers.delivery.loop import Processor
from consumers.notification.bodies import body_of
from consumers.notification.records import resend, write_bank_records, write_records
from schemas.topics import BANK_TRANSACTION, PAYMENT_ORDER

PROCESSOR = Processor(
    name="notification",
    service="notification",
    topics=(PAYMENT_ORDER,),
    handle=write_records,
    touches_outside=lambda event: body_of(event) is not None,
    resend=resend,
)

BANK_PROCESSOR = Processor(
    name="bank_notification",
    service="bank",
    topics=(BANK_TRANSACTION,),
    handle=write_bank_records,
    touches_outside=lambda _: True,
    resend=resend,
)
