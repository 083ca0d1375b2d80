"""Rollouts as generators: one yields a request, is sent the completion, and may write tokens of its own before it asks again.

The requests of all rollouts go into one queue, so that the engine's batch stays full while some have ended and others go on. A
rollout runs in the thread that collects, between two steps of an engine in this process: what it does there must be quick.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rollout.chat_template import text_between_turns
from rollout.records import Completion, FinishReason, Message, Problem
from rollout.sampler import RequestQueue, Sampler, SampleRequest, SamplingParams, Stream


class Fixed(NamedTuple):
    """Tokens that the policy did not choose: a tool's answer, a forced phrase. They are context of what follows."""

    token_ids: tuple[int, ...]
    text: str

    @staticmethod
    def of(text: str, tokenizer: PreTrainedTokenizerBase) -> Fixed:
        return Fixed(tuple(tokenizer.encode(text, add_special_tokens=False)), text)

    @staticmethod
    def reply(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, turn: Completion) -> Fixed:
        """Messages (a tool's, the user's) behind a turn of the model's, as the chat template writes them. The token that ends the
        turn is not written again where the model has written it."""
        fixed = Fixed.of(text_between_turns(tokenizer, messages), tokenizer)
        ends_alike = fixed.token_ids[:1] == turn.token_ids[-1:]
        return fixed._replace(token_ids=fixed.token_ids[1:]) if ends_alike else fixed


Place = tuple[int, int]  # of a rollout: the index of its group, its own index in that group
Parts = Sequence[Completion | Fixed]  # of one completion, in the order of its tokens


@dataclass(frozen=True, kw_only=True)
class Episode:
    """What one rollout begins with.

    opened: what of the answer the prompt has begun (rollout/opened.py).
    max_tokens: the limit of the whole completion, fixed tokens included.
    seed_of: the seed of each turn, counted from 0.
    """

    problem: Problem
    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed_of: Callable[[int], int]
    opened: str = ""

    def ask(self, parts: Parts = (), *, at_most: int | None = None) -> SampleRequest:
        """The request for the policy's next turn, after the parts that are there. at_most: its own limit of tokens, such as a budget
        of thought."""
        context = tuple(token for part in parts for token in part.token_ids)
        turn = sum(isinstance(part, Completion) for part in parts)
        left = self.num_left(parts)
        return SampleRequest(
            self.prompt_ids + context, (self.seed_of(turn),), left if at_most is None else min(left, at_most)
        )

    def num_left(self, parts: Parts) -> int:
        """How many tokens a further turn may have; it needs at least one."""
        return max(0, self.max_tokens - sum(len(part.token_ids) for part in parts))

    def join(self, parts: Parts) -> Completion:
        """One completion of all parts: the seed is the first turn's, the finish reason the last one's.

        Fixed tokens that reach the limit end it as the limit does; those beyond the limit are cut off.
        """
        turns = [part for part in parts if isinstance(part, Completion)]
        token_ids = [token for part in parts for token in part.token_ids]
        loss_mask = [
            x for p in parts for x in (p.loss_mask if isinstance(p, Completion) else (False,) * len(p.token_ids))
        ]
        is_cut = isinstance(parts[-1], Fixed) and self.num_left(parts) == 0
        return Completion(
            token_ids=tuple(token_ids[: self.max_tokens]),
            loss_mask=tuple(loss_mask[: self.max_tokens]),
            sampler_logprobs=tuple(logprob for turn in turns for logprob in turn.sampler_logprobs),
            finish_reason=FinishReason.LENGTH if is_cut else turns[-1].finish_reason,
            policy_version=min(turn.policy_version for turn in turns),
            seed=turns[0].seed,
            text="".join(part.text for part in parts),
            view=turns[0].view,
        )


Turns = Generator[SampleRequest, Completion, Completion]
RolloutFunction = Callable[[Episode], Turns]


def one_shot(episode: Episode) -> Turns:
    """The policy's first turn is the whole completion."""
    return (yield episode.ask())


def run_rollouts(groups: Sequence[Sequence[Turns]], sampler: Sampler, params: SamplingParams) -> Stream:
    """The completions of all rollouts as they end, each with the index of its group and its own index in that group.

    Rollouts of a group that begin with the same prompt begin as one request, whose prompt the engine runs once.
    """
    running = {(i, j): rollout for i, group in enumerate(groups) for j, rollout in enumerate(group)}
    queue, place_of = RequestQueue(), dict[tuple[int, int], Place]()  # of each pending seed of each request

    def resume(place: Place, turn: Completion | None) -> SampleRequest | Completion:
        try:
            return running[place].send(turn)  # pyright: ignore[reportArgumentType]  a generator starts with None
        except StopIteration as end:
            del running[place]
            return end.value

    def put(requests: Mapping[Place, SampleRequest]) -> None:
        for (prompt_ids, max_tokens), same in groupby(requests.items(), key=lambda item: _prompt_and_limit(item[1])):
            places, alike = zip(*same, strict=True)
            number = queue.put(SampleRequest(prompt_ids, tuple(seed for r in alike for seed in r.seeds), max_tokens))
            place_of.update({(number, n): place for n, place in enumerate(places)})

    try:
        for i, group in enumerate(groups):
            put({(i, j): _request(resume((i, j), None)) for j in range(len(group))})
        with closing(sampler.stream(queue, params)) as stream:
            for number, n, turn in stream:
                place = place_of.pop((number, n))
                answer = resume(place, turn)
                if isinstance(answer, Completion):
                    yield *place, answer
                else:
                    put({place: _request(answer)})
                if not running:
                    queue.close()
    finally:
        for rollout in running.values():
            rollout.close()


def _request(answer: SampleRequest | Completion) -> SampleRequest:
    if isinstance(answer, Completion) or len(answer.seeds) != 1:
        raise UserError(
            f"a rollout yields {answer}: it must begin with a request, and each of its requests has one seed"
        )
    return answer


def _prompt_and_limit(request: SampleRequest) -> tuple[tuple[int, ...], int | None]:
    return request.prompt_ids, request.max_tokens
