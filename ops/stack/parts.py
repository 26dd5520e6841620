"""What the stack is made of: how each part is prepared, started, found ready and stopped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path

import psycopg

from ops.stack import class_archive, tie
from ops.stack.processes import Process, processes, require_gates
from ops.stack.programs import (
    JVM_ENVIRONMENT,
    KAFKA_VERSION,
    Programs,
    java,
    postgres_bin,
    postgres_package,
    postgres_version,
)
from ops.stack.state import ROOT, SECRETS, StackFolder, file_stem
from outbox.errors import NotReady

TIE = Path(tie.__file__)
KAFKA_CLUSTER = "payrelay-local-kafka00"  # 22 characters, as Kafka wants it


@dataclass(frozen=True, kw_only=True)
class Part:
    """A process that the supervisor keeps alive."""

    name: str
    version: str
    command: list[str]
    port: int | None = None
    metrics_port: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    """Makes what the process needs before its first start; may be repeated."""
    ready: Callable[[], bool] = lambda: True
    progress: re.Pattern[str] | None = None
    """Finds in a line of its log what it says of its own progress towards being ready."""
    cwd: Path = ROOT
    needs: tuple[str, ...] = ()
    """Gates that must be open before the process starts."""
    stop_signal: int = signal.SIGTERM
    stop_s: float = 20.0
    """After this long a stopping process is killed."""
    death_signal: int = signal.SIGKILL
    """What the process gets when its supervisor dies."""
    mode: str = "keep"
    """As whom it runs: a mode of ops/stack/tie.py."""


def tied(command: list[str], *, mode: str = "keep", death_signal: int = signal.SIGKILL) -> list[str]:
    """Return a command for a process that dies with the calling one."""
    return [sys.executable, "-I", "-S", str(TIE), mode, str(int(death_signal)), str(os.getpid()), *command]


def parts_of(folder: StackFolder, programs: Programs, ports: Mapping[str, int], *, infrastructure: bool) -> list[Part]:
    """Return the parts of a stack, in the order of `payrelay status`."""
    parts = [_postgres(folder, ports["postgres"]), _kafka(folder, programs, ports), _connect(folder, programs, ports)]
    if infrastructure:
        return parts
    return parts + [_payrelay(folder, ports, process) for process in processes()]


def _payrelay(folder: StackFolder, ports: Mapping[str, int], process: Process) -> Part:
    name = process.name
    require_gates(name, process.needs)
    for wanted in (process.metrics, *((name,) if process.serves_http else ())):
        if wanted not in ports:
            raise NotReady(f"{folder.path / 'ports.json'} has no port for {wanted}: payrelay down, payrelay up")
    condition = folder.conditions / f"{file_stem(name)}.json"
    port, metrics_port = ports.get(name), ports[process.metrics]

    def forget() -> None:
        condition.unlink(missing_ok=True)

    return Part(
        name=name,
        version="",
        command=[sys.executable, "-m", "ops.cli.main", *process.arguments],
        port=port,
        metrics_port=metrics_port,
        environment={
            "PAYRELAY_HOME": str(folder.home),
            "PAYRELAY_STACK": folder.name,
            "PAYRELAY_CONDITION_FILE": str(condition),
            "PAYRELAY_METRICS_HOST": "127.0.0.1",
            "PAYRELAY_METRICS_PORT": str(metrics_port),
        },
        prepare=forget,
        ready=partial(_answers, f"http://127.0.0.1:{port}/health") if port else condition.exists,
        needs=process.needs,
        stop_s=20.0,
    )


def _postgres(folder: StackFolder, port: int) -> Part:
    place = PostgresPlace.of(folder)
    return Part(
        name="postgres",
        version=postgres_version(),
        command=[str(place.bin / "postgres"), "-D", str(place.data), "-p", str(port)],
        port=port,
        prepare=partial(_prepare_postgres, folder, place),
        ready=partial(_postgres_answers, folder, port),
        progress=re.compile(r" LOG:\s+(.*)"),  # recovery reports every 10 s; refused connections are FATAL
        stop_signal=signal.SIGINT,  # fast shutdown: open transactions are rolled back
        death_signal=signal.SIGQUIT,
        mode=place.mode,
    )


@dataclass(frozen=True)
class PostgresPlace:
    """Where PostgreSQL's programs and data are: in the stack's folder if the server's user can reach it."""

    bin: Path
    data: Path
    mode: str

    @classmethod
    def of(cls, folder: StackFolder) -> PostgresPlace:
        if os.geteuid() != 0:
            return cls(postgres_bin(), folder.path / "postgres", "keep")
        if _user_namespaces_work():
            return cls(postgres_bin(), folder.path / "postgres", "namespace")
        # Root, and no user namespaces: the unprivileged user could not reach a checkout below a 0700 folder.
        reachable = Path("/var/tmp") / f"payrelay-{sha256(str(folder.path).encode()).hexdigest()[:12]}"  # noqa: S108
        copied = reachable / "programs" / postgres_bin().relative_to(postgres_package().parent)
        return cls(copied, reachable / "data", "nobody")


@cache
def _user_namespaces_work() -> bool:
    return subprocess.run(tied(["true"], mode="namespace"), check=False).returncode != tie.NO_NAMESPACE


def _prepare_postgres(folder: StackFolder, place: PostgresPlace) -> None:
    _end_stale_postgres(place.data)
    owner = folder.secrets()["owner"]
    if place.mode == "nobody":
        _copy_programs(place.data.parent / "programs")
    if not (place.data / "PG_VERSION").exists() or not (place.data / ".complete").exists():
        shutil.rmtree(place.data, ignore_errors=True)
        place.data.mkdir(parents=True, mode=0o700)
        password = place.data.parent / f".{place.data.name}.password"
        password.touch(mode=0o600)
        password.write_text(owner)
        if place.mode == "nobody":
            _give_away(place.data)
            _give_away(password)
        initdb = [
            str(place.bin / "initdb"), "-D", str(place.data), "-U", "postgres", "--auth=scram-sha-256",
            f"--pwfile={password}", "--encoding=UTF8", "--no-locale", "--no-sync",
        ]  # fmt: skip
        made = subprocess.run(tied(initdb, mode=place.mode), capture_output=True, text=True, check=False)
        password.unlink()
        if made.returncode:
            raise RuntimeError(f"initdb: {made.stderr.strip() or made.stdout.strip()}")
        with (place.data / "postgresql.conf").open("a") as file:
            file.write("include 'payrelay.conf'\n")
        (place.data / ".complete").touch()
    settings = POSTGRES_LOCAL | POSTGRES_SETTINGS
    (place.data / "payrelay.conf").write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))


def _copy_programs(target: Path) -> None:
    """The package's programs lie in the target with the libraries beside them, as in the wheel."""
    if target.exists():
        return
    package, scratch = postgres_package(), target.with_suffix(".part")
    shutil.rmtree(scratch, ignore_errors=True)
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.exists():
            shutil.copytree(folder, scratch / folder.name)
    _give_away(scratch)
    scratch.rename(target)


POSTGRES_SETTINGS = {
    "wal_level": "logical",
    "track_commit_timestamp": "on",
    "max_connections": "200",
    "max_wal_senders": "10",
    "max_replication_slots": "10",
    "max_slot_wal_keep_size": "10GB",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
}
"""What payrelay needs of any PostgreSQL; docker-compose.yml holds the same values."""


POSTGRES_LOCAL = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "log_min_messages": "warning",
    "log_line_prefix": "'%m [%p] %u '",
    "timezone": "'UTC'",
    "log_timezone": "'UTC'",
}


def _give_away(path: Path) -> None:
    for item in (path, *path.rglob("*")):
        os.chown(item, tie.NOBODY, tie.NOBODY, follow_symlinks=False)


def _end_stale_postgres(data: Path) -> None:
    """No server of an earlier supervisor runs on the data, and no stale lock file of one keeps ours away."""
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text().split()[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
        command = []
    if str(data) in command:
        os.kill(pid, signal.SIGQUIT)
        raise RuntimeError(f"an earlier server (pid {pid}) is still ending")  # the supervisor tries again
    lock.unlink(missing_ok=True)


def _postgres_answers(folder: StackFolder, port: int) -> bool:
    """Return whether the server takes connections; its database is then there."""
    try:
        connection = psycopg.connect(
            host="127.0.0.1", port=port, user="postgres", password=folder.secrets()["owner"],
            dbname="postgres", connect_timeout=2, autocommit=True,
        )  # fmt: skip
        with connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'payrelay'").fetchone():
                connection.execute("CREATE DATABASE payrelay")
    except psycopg.Error:
        return False
    return True


JVM_FLAGS = ["-XX:+UseSerialGC", "-Xms128m", "-Xmx512m", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]


def _java(
    folder: StackFolder, programs: Programs, main: str, properties: str, *arguments: str, archive: Sequence[str]
) -> list[str]:
    """Return the command of a Java program, to be run in the stack's folder, with the options for its class archive.

    All paths are relative to it: a class path cannot hold a colon, nor a list of Kafka's a comma, nor a reference to a secret a colon or
    a brace, and where the checkout lies is not ours to say.
    """
    logging = f"-Dlog4j2.configurationFile={properties.partition('/')[0]}/log4j2.properties"
    return [
        java(),
        *JVM_FLAGS,
        *archive,
        logging,
        "-cp",
        programs.class_path(folder.path),
        main,
        *arguments,
        properties,
    ]


def _kafka(folder: StackFolder, programs: Programs, ports: Mapping[str, int]) -> Part:
    return Part(
        name="kafka",
        version=KAFKA_VERSION,
        command=_java(
            folder,
            programs,
            "kafka.Kafka",
            BROKER_PROPERTIES,
            archive=class_archive.reading_or_writing(programs, folder.path, "kafka"),
        ),
        cwd=folder.path,
        environment=JVM_ENVIRONMENT,
        port=ports["kafka"],
        prepare=partial(_prepare_kafka, folder, programs, ports),
        ready=partial(_broker_answers, ports["kafka"]),
    )


def broker_properties(ports: Mapping[str, int], data: str) -> dict[str, str]:
    """Return the broker's configuration; docker-compose.yml holds the same values."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{ports['controller']}",
        "listeners": f"PLAINTEXT://127.0.0.1:{ports['kafka']},CONTROLLER://127.0.0.1:{ports['controller']}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports['kafka']}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "log.dirs": data,
        **BROKER_SETTINGS,
    }


BROKER_SETTINGS = {
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "min.insync.replicas": "1",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "2000",
    "log.message.timestamp.type": "LogAppendTime",
    "log.cleaner.dedupe.buffer.size": "16777216",
    "message.max.bytes": "2097152",
}


BROKER_PROPERTIES = "kafka/server.properties"
CONNECT_PROPERTIES = "connect/connect.properties"


def _prepare_kafka(folder: StackFolder, programs: Programs, ports: Mapping[str, int]) -> None:
    home = folder.path / "kafka"
    home.mkdir(exist_ok=True)
    (folder.path / class_archive.FOLDER).mkdir(exist_ok=True)
    (folder.path / BROKER_PROPERTIES).write_text(java_properties(broker_properties(ports, "kafka/data")), "ascii")
    (home / "log4j2.properties").write_text(LOG4J)
    if not (home / "data" / "meta.properties").exists():
        tool = ["format", "-t", KAFKA_CLUSTER, "--ignore-formatted", "-c"]
        archive = class_archive.reading(programs, folder.path, "kafka")
        command = _java(folder, programs, "kafka.tools.StorageTool", BROKER_PROPERTIES, *tool, archive=archive)
        made = subprocess.run(
            tied(command), cwd=folder.path, env={**os.environ, **JVM_ENVIRONMENT},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"kafka storage format: {made.stdout.strip()} {made.stderr.strip()}")


LOG4J = """\
status = warn
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
logger.connect.name = org.apache.kafka.connect.runtime
logger.connect.level = info
logger.debezium.name = io.debezium
logger.debezium.level = info
"""


def java_properties(properties: Mapping[str, str]) -> str:
    """Return properties as the text of a file, in ASCII: Java reads such a file as Latin-1.

    >>> print(java_properties({"log.dirs": " /Zahlungsläufe/a=b:c\\\\支\\U0001f4b6"}), end="")
    log.dirs=\\u0020/Zahlungsl\\u00e4ufe/a=b:c\\\\\\u652f\\ud83d\\udcb6
    """
    return "".join(f"{key}={_java_escaped(value)}\n" for key, value in properties.items())


def _java_escaped(value: str) -> str:
    kept = value.lstrip()  # white space at the beginning would be taken for the separator's
    begin = len(value) - len(kept)
    plain = (character if " " <= character <= "~" else _units(character) for character in kept.replace("\\", "\\\\"))
    return _units(value[:begin]) + "".join(plain)


def _units(text: str) -> str:
    units = text.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _connect(folder: StackFolder, programs: Programs, ports: Mapping[str, int]) -> Part:
    home = folder.path / "connect"

    def prepare() -> None:
        home.mkdir(exist_ok=True)
        (folder.path / class_archive.FOLDER).mkdir(exist_ok=True)
        (home / "log4j2.properties").write_text(LOG4J)
        settings = connect_properties(
            bootstrap=f"127.0.0.1:{ports['kafka']}", port=ports["connect"], host="127.0.0.1",
            plugins=os.path.relpath(programs.plugins, folder.path),
            secrets=folder.as_connect_reads_it(SECRETS),
        )  # fmt: skip
        (folder.path / CONNECT_PROPERTIES).write_text(java_properties(settings), "ascii")

    return Part(
        name="connect",
        version=KAFKA_VERSION,
        command=_java(
            folder,
            programs,
            "org.apache.kafka.connect.cli.ConnectDistributed",
            CONNECT_PROPERTIES,
            archive=class_archive.reading_or_writing(programs, folder.path, "connect"),
        ),
        cwd=folder.path,
        environment=JVM_ENVIRONMENT,
        port=ports["connect"],
        prepare=prepare,
        ready=partial(_answers, f"http://127.0.0.1:{ports['connect']}/connectors"),
        stop_s=10.0,  # seen to hang on SIGTERM once, its task still publishing; the slot's position makes a kill safe
    )


def connect_properties(*, bootstrap: str, host: str, port: int, plugins: str, secrets: str) -> dict[str, str]:
    """Return the Connect worker's configuration; docker-compose.yml holds the same values."""
    return {
        "bootstrap.servers": bootstrap,
        "listeners": f"http://{host}:{port}",
        "rest.advertised.host.name": host,
        "rest.advertised.port": str(port),
        "plugin.path": plugins,
        "config.providers.file.param.allowed.paths": secrets,
        **CONNECT_SETTINGS,
    }


CONNECT_SETTINGS = {
    "group.id": "payrelay-connect",
    "config.storage.topic": "payrelay-connect-configs",
    "config.storage.replication.factor": "1",
    "offset.storage.topic": "payrelay-connect-offsets",
    "offset.storage.replication.factor": "1",
    "offset.storage.partitions": "1",
    "status.storage.topic": "payrelay-connect-status",
    "status.storage.replication.factor": "1",
    "status.storage.partitions": "1",
    "key.converter": "org.apache.kafka.connect.storage.StringConverter",
    "value.converter": "org.apache.kafka.connect.storage.StringConverter",
    "plugin.discovery": "service_load",
    "offset.flush.interval.ms": "5000",
    "scheduled.rebalance.max.delay.ms": "0",
    "exactly.once.source.support": "disabled",
    "topic.creation.enable": "false",
    "connector.client.config.override.policy": "Allowlist",
    "connector.client.config.override.allowlist": "compression.type,linger.ms,batch.size,max.request.size,buffer.memory",
    "config.providers": "file",
    "config.providers.file.class": "org.apache.kafka.common.config.provider.FileConfigProvider",
    "session.timeout.ms": "6000",
    "heartbeat.interval.ms": "1000",
    "rebalance.timeout.ms": "10000",
}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - a loopback address of ours
            return bool(answer.status == 200)
    except (HTTPException, OSError):  # URLError is an OSError
        return False


def _broker_answers(port: int) -> bool:
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0, "socket.timeout.ms": 2000})
    try:
        return bool(client.list_topics(timeout=2).brokers)
    except Exception:  # noqa: BLE001 - whatever it is, the broker does not answer
        return False
