"""python -m rewards.metamath file.mm [label ...]: checks all proofs of a database, or those of the given theorems."""

from __future__ import annotations

import sys
from pathlib import Path

from rewards.metamath.database import DatabaseError, read_database
from rewards.metamath.kernel import Limits, ProofError, ProofLimitError, UnreadableProofError, check


def main(path: str, *labels: str) -> int:
    try:
        database = read_database(Path(path))
        theorems = [database.theorem(label) for label in labels] or list(database.theorems())
    except DatabaseError as error:
        print(error, file=sys.stderr)
        return 2
    num_wrong = 0
    for theorem in theorems:
        try:
            check(database, theorem, theorem.proof or "", limits=Limits())
        except (ProofError, ProofLimitError, UnreadableProofError) as error:
            num_wrong += 1
            print(f"{theorem.where}: {theorem.label}: {error}", file=sys.stderr)
    print(f"{len(theorems) - num_wrong} of {len(theorems)} proofs are right")
    return int(num_wrong > 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
