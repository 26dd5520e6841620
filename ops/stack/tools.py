"""Programs of the stack's own versions: PostgreSQL's on its database, as the owner, and Kafka's on its broker."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from psycopg.pq import Conninfo
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.pool import NullPool

from ops.stack.programs import JVM_ENVIRONMENT, Programs, java, postgres_bin
from outbox.database import driver_url
from outbox.errors import Refused, UnknownName
from outbox.migrate import owner_engine
from outbox.settings import READER, Settings

POSTGRES = ("psql", "pg_dump", "pg_restore", "pg_basebackup")
KAFKA = {
    "kafka-topics": "org.apache.kafka.tools.TopicCommand",
    "kafka-consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "kafka-console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
}
VERSION = re.compile(r"\(PostgreSQL\) ([0-9]+)")


def run_tool(settings: Settings, name: str, arguments: Sequence[str], *, programs: Programs) -> int:
    """Return the exit code of a program, which has read and written on the caller's own channels.

    Raises UnknownName for what is none of the programs, Refused where none at hand is of the server's version.
    """
    if name in POSTGRES:
        dsn = settings.database_url.get_secret_value()
        path = newest_enough(name, candidates(name), server_version(owner_engine(settings)))
        return _run([str(path), *arguments], environment=environment_of(dsn))
    if name in KAFKA:
        if not programs.are_there():
            raise Refused(f"{name} is not installed. To fetch Kafka's programs: payrelay setup")
        quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        broker = ["--bootstrap-server", settings.kafka_bootstrap]
        return _run(
            [java(), *quick, "-cp", programs.class_path(Path.cwd()), KAFKA[name], *broker, *arguments],
            environment=JVM_ENVIRONMENT,
        )
    raise UnknownName(f"there is no program {name!r}; there are: {', '.join((*POSTGRES, *KAFKA))}")


READ_ONLY = "-c default_transaction_read_only=on"


def run_sql(settings: Settings, role: str, arguments: Sequence[str]) -> int:
    """Return the exit code of psql, which has run as a role on the caller's own channels; as `ops` its transactions are read only.

    Raises Misused where the settings have no DSN of the role, Refused where no psql at hand is of the server's version.
    """
    dsn = settings.dsn_of(role)
    engine = create_engine(driver_url(dsn), poolclass=NullPool, connect_args={"connect_timeout": 5})
    environment = environment_of(dsn)
    if role == READER:
        environment["PGOPTIONS"] = f"{environment.get('PGOPTIONS', '')} {READ_ONLY}".strip()
    path = newest_enough("psql", candidates("psql"), server_version(engine))
    return _run([str(path), *arguments], environment=environment)


def candidates(name: str) -> list[Path]:
    """Return where a program of PostgreSQL's lies: the one beside the local stack's server, and the one on the PATH."""
    paths = []
    with contextlib.suppress(ImportError):  # where no local stack is installed
        paths.append(postgres_bin() / name)
    if on_path := shutil.which(name):
        paths.append(Path(on_path))
    return [path for path in paths if path.exists()]


def newest_enough(name: str, paths: Sequence[Path], wanted: int) -> Path:
    """Return the first program that is not older than the server: an older pg_dump refuses to dump. Raises Refused for none."""
    versions: dict[Path, int] = {}
    for path in paths:
        printed = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        versions[path] = int(match[1]) if (match := VERSION.search(printed)) else 0
        if versions[path] >= wanted:
            return path
    versions_here = (
        ", ".join(f"{path} is of version {version}" for path, version in versions.items()) or "there is none"
    )
    raise Refused(
        f"PostgreSQL is of version {wanted}, and no {name} of that version is here: {versions_here}. Put the right one on the PATH"
    )


def server_version(engine: Engine) -> int:
    """Return the major version of the database's server."""
    with engine.connect() as connection:
        return int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000


def environment_of(dsn: str) -> dict[str, str]:
    """Return a DSN, TLS and all, as PostgreSQL's programs take it: a password is on no command line."""
    url = driver_url(dsn).set(drivername="postgresql")
    options = Conninfo.parse(url.render_as_string(hide_password=False).encode())
    return {
        option.envvar.decode(): option.val.decode() for option in options if option.envvar and option.val is not None
    }


def _run(command: Sequence[str], *, environment: Mapping[str, str]) -> int:
    inherited = {
        name: value for name, value in os.environ.items() if name != "PGSERVICE"
    }  # it would name another server
    return subprocess.run(command, env={**inherited, **environment}, check=False).returncode
