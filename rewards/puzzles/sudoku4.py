"""Sudoku on a 4 by 4 grid: every row, column and 2 by 2 box contains each of 1, 2, 3 and 4."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from rewards.puzzles.puzzle import sequence
from rewards.verdict import BadReference, Verdict, right, unparsed, wrong

_UNITS: dict[str, tuple[int, ...]] = {
    **{f"row {n + 1}": tuple(range(4 * n, 4 * n + 4)) for n in range(4)},
    **{f"column {n + 1}": tuple(range(n, 16, 4)) for n in range(4)},
    **{f"box {n + 1}": tuple(corner + cell for cell in (0, 1, 4, 5)) for n, corner in enumerate((0, 2, 8, 10))},
}
_SEPARATORS = re.compile(r"[\s,;|&()\[\]{}$]+|\\\\|\\(?:begin|end)\{[a-z]{0,9}matrix\}")


def _broken_unit(grid: str) -> str | None:
    """The name of the first row, column or box of the grid that does not contain 1, 2, 3 and 4; None if all do."""
    return next((name for name, cells in _UNITS.items() if sorted(grid[cell] for cell in cells) != [*"1234"]), None)


def _all_grids() -> list[str]:
    """All 288 valid grids, each as 16 digits."""
    rows = ["".join(row) for row in permutations("1234")]
    bands = [a + b for a in rows for b in rows if not {*a[:2]} & {*b[:2]} and not {*a[2:]} & {*b[2:]}]
    return [a + b for a in bands for b in bands if _broken_unit(a + b) is None]


GRIDS = _all_grids()


@dataclass(frozen=True)
class Sudoku4:
    """A puzzle for which any valid grid with the given digits is a correct answer.

    givens: 16 characters, row by row, with a dot for each empty cell.
    """

    givens: str
    solution: str

    @classmethod
    def read(cls, reference: Mapping[str, Any]) -> Sudoku4:
        rows = sequence(reference, "givens", 4, 4)
        if not all(isinstance(row, str) and re.fullmatch("[1-4.]{4}", row) for row in rows):
            raise BadReference("givens must be four rows of four characters, each 1 to 4 or a dot")
        givens = "".join(rows)
        solution = next((grid for grid in GRIDS if _changed(givens, grid) is None), None)
        if solution is None:
            raise BadReference("givens contradict each other: no grid has them")
        return cls(givens, solution)

    def grade(self, answer: str) -> Verdict:
        grid = _SEPARATORS.sub("", answer)
        if not re.fullmatch("[0-9]{16}", grid):
            return unparsed("not four rows of four digits")
        changed, broken = _changed(self.givens, grid), _broken_unit(grid)
        if changed is not None:
            return wrong(f"row {changed // 4 + 1}, column {changed % 4 + 1} is given as {self.givens[changed]}")
        return right("keeps the givens and the rules") if broken is None else wrong(f"{broken} is not 1, 2, 3, 4")


def _changed(givens: str, grid: str) -> int | None:
    """The index of the first cell in which `grid` differs from the given digit; None if there is none."""
    return next((cell for cell in range(16) if givens[cell] not in (".", grid[cell])), None)
