"""Grades Metamath proofs. Runs in a worker process only."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from pathlib import Path

from rewards.metamath.database import Assertion, Database, DatabaseError, parse_database, read_database
from rewards.metamath.kernel import Limits, ProofError, ProofLimitError, UnreadableProofError, check
from rewards.proofs.task import MetamathTask
from rewards.verdict import BadReference, Verdict, right, timeout, unparsed, wrong

MAX_LENGTH = 1 << 20  # characters of a proof; the longest one of set.mm has 36,000


class MetamathGrader:
    """Grades proofs in Metamath. deadline: seconds for one proof, without the time to read a database (once per
    worker)."""

    def __init__(self, *, deadline: float) -> None:
        self._deadline = deadline

    def grade(self, proof: str, task: MetamathTask) -> Verdict:
        """The verdict on a proof in normal (labels) or compressed form, with or without the $= and $. around it."""
        database, theorem = _theorem(task)
        if len(proof) > MAX_LENGTH:
            return timeout(f"a proof of more than {MAX_LENGTH} characters")
        proof = proof.strip().removeprefix("$=").removesuffix("$.")
        limits = Limits(deadline=time.monotonic() + self._deadline)
        try:
            check(database, theorem, proof, limits=limits, without=task.without)
        except UnreadableProofError as error:
            return unparsed(str(error))
        except ProofError as error:
            return wrong(str(error))
        except ProofLimitError as error:
            return timeout(str(error))
        return right("proved")

    def check_task(self, task: MetamathTask) -> Verdict:
        """CORRECT if the theorem exists, or can be added to the database. Raises BadReference otherwise."""
        _theorem(task)
        return right("stated")


def _theorem(task: MetamathTask) -> tuple[Database, Assertion]:
    try:
        database = _database(task)
        for label in task.without:
            if label not in database.statements:
                raise BadReference(f"without: the database has no statement labelled {label!r}")
        if task.theorem:
            return database, database.theorem(task.theorem)
        return database.with_theorem(task.statement, before=task.before or None)
    except DatabaseError as error:
        raise BadReference(str(error)) from None


def _database(task: MetamathTask) -> Database:
    if task.source:
        return _parsed(task.source)
    try:
        status = os.stat(task.database)
    except OSError as error:
        raise BadReference(f"cannot read the database {task.database}: {error.strerror}") from None
    return _read(task.database, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read(path: str, _time: int, _size: int) -> Database:
    """The database in a file. Its time and size are arguments so that the cache misses when the file has changed."""
    return read_database(Path(path))


@lru_cache(maxsize=64)
def _parsed(source: str) -> Database:
    return parse_database(source)
