"""A receiver of payrelay's notifications: verifies, applies each once, answers `success`. Needs `pip install standardwebhooks`.

A notification may come more than once, always under the same `webhook-id`: the id and the effect are written in one transaction.
"""

import os
import sqlite3
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (webhook_id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS paid (order_no TEXT PRIMARY KEY, status TEXT NOT NULL, amount_fen INTEGER NOT NULL);
"""

PAID = "INSERT INTO paid VALUES (?, ?, ?) ON CONFLICT (order_no) DO UPDATE SET status = excluded.status"


def receive(database: sqlite3.Connection, secret: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
    """Return status and text to answer. After `success` the notification is applied; after any other answer it comes again."""
    try:
        notification = Webhook(secret).verify(body, headers)
    except WebhookVerificationError:
        return 401, "not signed by payrelay"
    with database:  # one transaction: both rows, or neither
        first = database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (headers["webhook-id"],)).rowcount
        if first and notification["type"] in ("payment.settled.v1", "payment.failed.v1"):
            row = (notification["order_no"], notification["status"], notification["amount_fen"])
            database.execute(PAID, row)
    return 200, "success"


class Handler(BaseHTTPRequestHandler):
    timeout = 15  # seconds without a byte; then the connection is closed

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal() and len(length) <= 5 and int(length) <= 65_536):
            self.send_error(413)
            return
        body = self.rfile.read(int(length))
        headers = {name.lower(): value for name, value in self.headers.items()}
        database = sqlite3.connect(os.environ.get("DATABASE", "paid.db"), timeout=10)
        try:
            database.executescript(SCHEMA)
            status, text = receive(database, os.environ["SECRET"], headers, body)
        finally:
            database.close()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "8700"))), Handler).serve_forever()
