"""The rounds: train, score, recall the best pages, let domains join the seed, until a round finds hardly anything new."""

from __future__ import annotations

import json

import numpy as np

from rewards.errors import UserError
from rollout.corpus.mining.collection import Collection
from rollout.corpus.mining.domains import Decisions
from rollout.corpus.mining.one_round import Round, State, run_round
from rollout.corpus.mining.settings import Mining
from rollout.corpus.mining.training import prepare
from rollout.corpus.mining.workers import Workers


def run_rounds(mining: Mining, pages: Collection, decisions: Decisions, workers: Workers) -> tuple[list[Round], State]:
    """Goes through the rounds; one that is in the folder already is read from it.

    The last is number `rounds`, or the first whose pages were recalled before to a share of stop_at. Raises UserError for decisions
    that come after the last round.
    """
    seed_size = prepare(mining, pages, workers)
    state, rounds, is_new = State.at_start(len(pages)), list[Round](), True
    while len(rounds) < mining.rounds and not (len(rounds) > 1 and rounds[-1].known_share >= mining.stop_at):
        number = len(rounds) + 1
        result = mining.round_folder(number) / "round.json"
        is_new = not result.exists()
        if is_new:
            run_round(mining, pages, number, state, decisions, seed_size, workers)
        rounds.append(Round(**json.loads(result.read_text(encoding="utf-8"))))
        state = _after(mining, number, state)
    if decisions.digest and not is_new and rounds[-1].reviewed != decisions.digest:
        raise UserError(
            f"reviewed is {str(mining.reviewed)!r}: the {len(rounds)} rounds of {str(mining.out)!r} are done without these decisions; "
            "raise rounds, or stop_at where it has ended them, or name a new folder"
        )
    return rounds, state


def _after(mining: Mining, number: int, before: State) -> State:
    folder = mining.round_folder(number)
    first_round = before.first_round.copy()
    first_round[np.load(folder / "recalled.npy") & ~before.collected] = number
    with np.load(folder / "joined.npz") as saved:
        return State(first_round=first_round, joined=saved["joined"], scores=np.load(folder / "scores.npy"))
