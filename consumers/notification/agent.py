"""The notification processors, the platform's and the bank's: they only write the record; the sender sends."""

from consumers.delivery.processor import Processor
from consumers.notification.records import body_of, resend, write_bank_records, write_records
from schemas.topics import BANK_TRANSACTION, PAYMENT_ORDER

PROCESSOR = Processor(
    name="notification",
    service="notification",
    topics=(PAYMENT_ORDER,),
    handle=write_records,
    notifies=lambda event: body_of(event) is not None,
    resend=resend,
)

BANK_PROCESSOR = Processor(
    name="bank_notification",
    service="bank",
    topics=(BANK_TRANSACTION,),
    handle=write_bank_records,
    notifies=lambda _: True,
    resend=resend,
)
