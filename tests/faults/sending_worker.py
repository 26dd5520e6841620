"""The notifier for one queue of the notification service, in a process that a test may kill."""

import sys

from consumers.notification.notifier.sender import run
from outbox.settings import Settings

if __name__ == "__main__":
    run(Settings(), {sys.argv[1]: "notification"})
