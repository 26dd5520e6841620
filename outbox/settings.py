"""Settings: with outbox/environment.py the only place that reads the environment. Every name below is `PAYRELAY_<NAME>` there.

Service addresses in `dsn` are `PAYRELAY_DSN__<SERVICE>`. DSNs are of the form postgresql://role:password@host:port/database.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from outbox.clock import zone_of
from outbox.environment import Environment as Environment
from outbox.errors import Misused
from schemas.numeric import parse_decimal, parse_whole

SERVICES = ("shop", "payments", "bank", "funds", "points", "accounting", "notification")
"""Each has a schema and a login role of its own name; a role can touch its own schema only."""

READER = "ops"
"""The role that reads every service's rows and writes none."""

SEARCHER = "outbox_reader"
"""The role that runs the conditions which an operator writes in SQL: it reads the outbox tables and nothing else."""

CONNECTOR = "debezium"
"""The role of Kafka Connect: REPLICATION, SELECT on the outbox tables, UPDATE on the heartbeat."""

DAYS_MAX = 36_500
Port = Annotated[int, Field(ge=0, le=65535)]
Timeout = Annotated[float, Field(ge=0.1, le=3600)]
Network = IPv4Network | IPv6Network


def _listed(given: object) -> object:
    return [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given


def _is_zone(name: str) -> str:
    zone_of(name)
    return name


def _is_address(url: str) -> str:
    parts = urlsplit(url)  # raises ValueError too
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("not of the form http://host:port")
    return url


Zone = Annotated[str, AfterValidator(_is_zone)]
Address = Annotated[str, AfterValidator(_is_address)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Of a connector: it is a part of a path, and of names of topics and files."""
PREFIX = r"^[A-Za-z0-9._-]{0,100}$"
"""Of topics and groups: what Kafka takes in a topic's name."""


class Settings(BaseSettings):
    """Where the parts are and how they behave; validated once, at the edge, and passed down."""

    model_config = SettingsConfigDict(
        env_prefix="PAYRELAY_", env_nested_delimiter="__", extra="forbid", hide_input_in_errors=True
    )

    # PostgreSQL. The owner's DSN is for migrations only; services use their own.
    database_url: SecretStr = SecretStr("")
    dsn: dict[str, SecretStr] = {}

    # Kafka and Kafka Connect
    kafka_bootstrap: str = ""
    connect_url: Annotated[str, AfterValidator(lambda url: url and _is_address(url))] = ""
    topic_prefix: Annotated[str, Field(pattern=PREFIX)] = ""
    group_prefix: Annotated[str, Field(pattern=PREFIX)] = ""
    connector: Annotated[str, Field(pattern=NAME)] = "payrelay-outbox"
    slot: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")] = "payrelay_outbox"
    slot_wait_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """How long open transactions are waited for when the replication slot is made; PostgreSQL makes none before they end."""
    connector_poll_interval_ms: Annotated[int, Field(ge=1, le=60_000)] = 5
    heartbeat_interval_ms: Annotated[int, Field(ge=100, le=60_000)] = 5_000
    connector_password_ref: str = ""
    """How the connector's configuration refers to the role's password, e.g. ${file:/path:debezium}; never the password."""
    connector_dsn: SecretStr = SecretStr("")
    replication_factor: Annotated[int, Field(ge=1, le=9)] = 1
    partitions: dict[str, Annotated[int, Field(ge=1, le=10_000)]] = {}
    """Partitions of a topic where they are not as schemas/topics.py declares them, as JSON: {"payment.order": 6}."""

    # HTTP services
    host: str = "127.0.0.1"
    payments_port: Port = 8601
    bank_port: Port = 8602
    notification_port: Port = 8603
    payments_url: Address = "http://127.0.0.1:8601"
    bank_url: Address = "http://127.0.0.1:8602"
    bank_notify_secret: SecretStr = SecretStr("")
    """whsec_… of the bank's notifications (Standard Webhooks)."""
    bank_link_secret: SecretStr = SecretStr("")
    """whsec_… of the payment links that the platform hands to payers."""
    zone: Zone = "Asia/Shanghai"
    """Days and months of payment limits are days and months of this zone."""
    order_ttl_s: Annotated[int, Field(ge=1, le=31_536_000)] = 900
    bank_executed_days: Annotated[int, Field(ge=1, le=365)] = 7
    """How long ago a bank may say that it has executed a payment; of what is older, the time of arrival counts."""
    allow_private_receivers: bool = False
    """Whether merchants' addresses may be private or loopback ones; for local stacks only."""

    # Connections of every HTTP server: services, console, metrics
    http_connections_max: Annotated[int, Field(ge=2, le=100_000)] = 1_000
    """Open at once in a process; beyond, the one that waits longest for its client is closed. At most half of the open files."""
    http_connections_per_address: Annotated[int, Field(ge=1, le=100_000)] = 200
    """Of one client address (of IPv6: one /64), but for those that have sent a valid signature. At most half of all."""
    http_head_timeout_s: Timeout = 10.0
    """How long a client may take to send a request's line and headers."""
    http_body_timeout_s: Timeout = 30.0
    """How long it may take to send the body, and to take in the answer."""
    http_idle_timeout_s: Timeout = 5.0
    """How long a connection stays open between two requests."""
    trusted_proxies: Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_listed)] = ()
    """Addresses or networks, with commas between: only these are believed X-Forwarded-For."""

    # Metrics for Prometheus, of each process at an address of its own; port 0: none.
    metrics_host: str = "127.0.0.1"
    metrics_port: Port = 0

    # Console
    console_host: str = "127.0.0.1"
    console_port: Port = 8610
    """0: any free one, which the command tells."""
    console_https: bool = False
    """Whether browsers reach it through a proxy that speaks HTTPS; without one it listens on this machine only."""
    console_users: dict[str, SecretStr] = {}
    """Who may sign in: role:hash of each name, as payrelay console user prints them."""

    # Processors
    batch_max: Annotated[int, Field(ge=1, le=10_000)] = 500
    session_timeout_s: Annotated[float, Field(ge=1, le=300)] = 10.0
    max_poll_interval_s: Annotated[float, Field(ge=1, le=3600)] = 300.0
    metadata_max_age_s: Annotated[float, Field(ge=0.1, le=3600)] = 5.0

    # Retention
    outbox_days: Annotated[int, Field(ge=1, le=DAYS_MAX)] = 14
    inbox_days: Annotated[int, Field(ge=2, le=DAYS_MAX)] = 45
    bank_notification_days: Annotated[int, Field(ge=1, le=DAYS_MAX)] = 30
    """How long the answer to a bank's notification is remembered; its signature is good for minutes."""

    @field_validator("*", mode="before")
    @classmethod
    def _as_number(cls, given: object, info: ValidationInfo) -> object:
        """Read a number of the environment as every other: ASCII digits, no spaces or underscores. Bounds are the field's."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(given, str) and kind is int:
            return parse_whole(given)
        if isinstance(given, str) and kind is float:
            return float(parse_decimal(given, low=0, high=10**9))
        return given

    def dsn_of(self, role: str) -> str:
        """Return the DSN of a service (or of `ops`); raises Misused naming the setting that is missing."""
        try:
            return self.dsn[role].get_secret_value()
        except KeyError:
            raise Misused(
                f"PAYRELAY_DSN__{role.upper()} is not set, and this command needs it: docs/reference/settings.md"
            ) from None
