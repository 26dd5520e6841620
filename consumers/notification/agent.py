"""The notification processors, the platform's and the bank's: they only write the notification; the notifier sends it."""

from consumers.delivery.processor import Processor
from consumers.notification.bodies import body_of
from consumers.notification.control import resend
from consumers.notification.write import write_bank_notifications, write_merchant_notifications
from schemas.topics import BANK_TRANSACTION, PAYMENT_ORDER

PROCESSOR = Processor(
    name="notification",
    service="notification",
    topics=(PAYMENT_ORDER,),
    handle=write_merchant_notifications,
    notifies=lambda event: body_of(event) is not None,
    resend=resend,
)

BANK_PROCESSOR = Processor(
    name="bank_notification",
    service="bank",
    topics=(BANK_TRANSACTION,),
    handle=write_bank_notifications,
    notifies=lambda _: True,
    resend=resend,
)
