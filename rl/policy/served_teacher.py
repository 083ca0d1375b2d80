"""A teacher behind a vLLM server, whose log-probs of the policy's samples are asked for over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rl.forward.micro_batch import MicroBatch, TrainSequence
from rollout.vllm_client import Server

IN_FLIGHT = 64  # requests at once: enough for a server to fill its forward passes, and what is more would wait there


@dataclass(frozen=True)
class ServedTeacher:
    """A frozen model that scores tokens as Policy.frozen_logprobs does, at temperature 1 only."""

    server: Server

    @classmethod
    def at(
        cls,
        url: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        longest: int,
        timeout: float,
        report: Callable[[str], None],
    ) -> Self:
        """The teacher at this address. Raises UserError unless it has the policy's tokens, takes rows of `longest` tokens and reports
        log-probs of them.

        timeout: seconds to wait for it when it stops to answer. report: called with a message meanwhile.
        """
        server = Server(url.rstrip("/"), timeout, report, option="teacher", max_rows=IN_FLIGHT)
        found = server.prompt_logprobs(
            server.check_model(tokenizer, longest + 1)
        )  # vLLM samples one token behind a row
        if max(found) > 1e-3:  # a log-prob is at most 0 but for rounding
            raise UserError(
                f"teacher: {server.url} reports {max(found):.3g} as a log-prob; start it without --logprobs-mode, whose logits are not "
                "normalised"
            )
        return cls(server)

    def frozen_logprobs(self, micros: Sequence[MicroBatch], temperature: float) -> list[Float[Tensor, " S"]]:
        """Its log-probs of the scored tokens of each micro-batch."""
        assert temperature == 1  # others are refused (rl/settings/checks.py)
        rows = [[(group.prompt_ids, s) for group in micro.groups for s in group.sequences] for micro in micros]
        with ThreadPoolExecutor(IN_FLIGHT) as threads:
            # An error ends the iterator, which then drops the requests that have not begun.
            answers = threads.map(self._score, [row for of_micro in rows for row in of_micro])
            return [
                torch.cat(list(islice(answers, len(of_micro)))).to(micro.device)
                for of_micro, micro in zip(rows, micros, strict=True)
            ]

    def _score(self, row: tuple[tuple[int, ...], TrainSequence]) -> Tensor:
        prompt, sequence = row
        found = self.server.prompt_logprobs((*prompt, *sequence.token_ids))
        return torch.tensor(found[len(prompt) - 1 :])[sequence.scored_indices()]
