"""Every processor of this version, by name: without Faust, so that who only asks for one starts at once."""

from __future__ import annotations

from consumers.accounting.agent import PROCESSOR as ACCOUNTING
from consumers.funds.agent import PROCESSOR as FUNDS
from consumers.notification.agent import BANK_PROCESSOR as BANK_NOTIFICATION
from consumers.notification.agent import PROCESSOR as NOTIFICATION
from consumers.points.agent import PROCESSOR as POINTS
from consumers.settlement.agent import PROCESSOR as SETTLEMENT

PROCESSORS = {
    processor.name: processor for processor in (FUNDS, POINTS, ACCOUNTING, NOTIFICATION, SETTLEMENT, BANK_NOTIFICATION)
}
