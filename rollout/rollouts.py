"""Rollouts as generators: one yields a request, is sent the completion, and may write tokens of its own before it asks again.

The requests of all rollouts go into one queue, so that the engine's batch stays full while some have ended and others go on. A
rollout runs in the thread that collects, between two steps of an engine in this process. What takes long, such as a tool, it yields
as a `Call`, which other threads can answer while the engine goes on.

Draws depend on seeds alone, rounding on the batch. Where the embedded engine decodes in several threads, or calls are answered in
threads, time decides in which batch a later turn is decoded: completions of several turns are bit-equal from run to run with one
thread only, and calls that are answered in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from threading import Lock
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rollout.chat_template import ToolSchema, tokens_between_turns
from rollout.environment import Environment
from rollout.records import Completion, FinishReason, Message, Problem
from rollout.sampler import RequestQueue, Sampler, SampleRequest, SamplingParams, Stream


class Fixed(NamedTuple):
    """Tokens that the policy did not choose, such as a tool's answer or a forced phrase: context for the next turn.

    text: what they contribute to the completion's graded text.
    """

    token_ids: tuple[int, ...]
    text: str

    @staticmethod
    def of(text: str, tokenizer: PreTrainedTokenizerBase) -> Fixed:
        return Fixed(tuple(tokenizer.encode(text, add_special_tokens=False)), text)

    @staticmethod
    def reply(
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        turn: Completion,
        tools: Sequence[ToolSchema] = (),
    ) -> Fixed:
        """Messages (of a tool or the user) that follow a turn of the model, as the chat template writes them. A token that ends the
        turn is left out if the model has written it already. Text of a token in their contents is text. The graded text has the messages' contents only: at the template's
        own end of turn a verifier would stop reading. tools: those that the prompt shows."""
        token_ids = tokens_between_turns(tokenizer, messages, tools)
        is_ended = token_ids[:1] == turn.token_ids[-1:]
        text = "\n".join(["", *(message["content"] for message in messages), ""])
        return Fixed(token_ids[1:] if is_ended else token_ids, text)

    @staticmethod
    def unread(
        messages: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
        turn: Completion,
        tools: Sequence[ToolSchema],
    ) -> Fixed:
        """A reply that is not graded, as that of a tool: an answer that stands there was not given by the model."""
        return Fixed.reply(messages, tokenizer, turn, tools)._replace(text="\n")


Place = tuple[int, int]  # of a rollout: the index of its group, its own index in that group
Parts = Sequence[Completion | Fixed]  # of one completion, in the order of its tokens


@dataclass(frozen=True, kw_only=True)
class Episode:
    """The input of one rollout.

    answer_prefix: the part of the answer that the prompt has begun (rollout/answer_prefix.py).
    max_tokens: the limit of the whole completion, fixed tokens included.
    seed_of: returns the seed of a turn, counted from 0.
    environment: what the rollout plays in; it is ended by who began it.
    """

    problem: Problem
    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed_of: Callable[[int], int]
    answer_prefix: str = ""
    environment: Environment | None = None

    def ask(
        self, parts: Parts = (), *, at_most: int | None = None, turn: int | None = None, is_last: bool = False
    ) -> SampleRequest:
        """The request for the policy's next turn, behind these parts. at_most: a limit of this turn's tokens, such as a thinking
        budget. turn: its number, by default the number of turns in the parts; a rollout that drops whole turns counts them.
        is_last: no turn follows, so that an engine need not keep this one's keys and values."""
        context = tuple(token for part in parts for token in part.token_ids)
        if turn is None:
            turn = sum(isinstance(part, Completion) for part in parts)
        left = self.num_left(parts)
        limit = left if at_most is None else min(left, at_most)
        return SampleRequest(self.prompt_ids + context, (self.seed_of(turn),), limit, is_last)

    def num_left(self, parts: Parts) -> int:
        """How many tokens the next turn may have. It needs at least one."""
        return max(0, self.max_tokens - sum(len(part.token_ids) for part in parts))

    def join(self, parts: Parts) -> Completion:
        """Joins all parts into one completion, with the first turn's seed and the last turn's finish reason.

        The finish reason is LENGTH where fixed tokens at the end reach the limit; those beyond the limit are cut off.
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


@dataclass(frozen=True)
class Call:
    """Work outside of the engine, such as a tool's. The rollout is sent what it returns; an exception of it ends the collection."""

    run: Callable[[], Any]


Turns = Generator[SampleRequest | Call, Any, Completion]
RolloutFunction = Callable[[Episode], Turns]


def one_shot(episode: Episode) -> Turns:
    """The policy's first turn is the whole completion."""
    return (yield episode.ask(is_last=True))


def run_rollouts(
    groups: Sequence[Sequence[Turns]], sampler: Sampler, params: SamplingParams, *, call_threads: int = 0
) -> Stream:
    """Runs all rollouts; yields their completions as they end, with the index of the group and of the rollout in its group.

    Rollouts of a group that begin with the same prompt share one request, whose prompt the engine processes once. call_threads: the
    threads that answer calls while the engine goes on; with 0 the engine waits for each answer.
    """
    threads = ThreadPoolExecutor(call_threads, thread_name_prefix="call") if call_threads else None
    running = _Running(groups, threads)
    try:
        running.begin()
        with closing(sampler.stream(running.queue, params)) as stream:
            for number, n, turn in stream:
                running.take(number, n, turn)
                yield from running.ended()
        yield from running.ended()
    finally:
        if threads is not None:
            threads.shutdown(cancel_futures=True)
        running.close()


class _Running:
    """Rollouts that have not ended, and the queue of their requests. Each is advanced by one thread at a time.

    threads: answer the calls, and advance the rollouts that made them.
    """

    def __init__(self, groups: Sequence[Sequence[Turns]], threads: ThreadPoolExecutor | None) -> None:
        self.queue = RequestQueue()
        self._groups, self._threads = groups, threads
        self._rollouts = {(i, j): rollout for i, group in enumerate(groups) for j, rollout in enumerate(group)}
        self._place_of = dict[tuple[int, int], Place]()  # of each pending seed of each request
        self._turn_of = dict[
            Place, tuple[int, int]
        ]()  # the last turn of each rollout, as a request and the index of its seed
        self._ended = deque[tuple[Place, Completion]]()
        self._error: BaseException | None = None  # the first that was raised in a thread
        self._lock = Lock()  # of all of these

    def begin(self) -> None:
        for i, group in enumerate(self._groups):
            self._put({(i, j): _request(self._send((i, j), None)) for j in range(len(group))})

    def take(self, number: int, n: int, turn: Completion) -> None:
        """Advances the rollout that asked for this turn."""
        with self._lock:
            place = self._place_of.pop((number, n))
            self._turn_of[place] = (number, n)
        self._advance(place, turn)

    def ended(self) -> Iterator[tuple[int, int, Completion]]:
        """The rollouts that have ended since the last call. Raises the error of a thread."""
        if self._error is not None:
            raise self._error
        while self._ended:
            place, completion = self._ended.popleft()
            yield *place, completion

    def close(self) -> None:
        for rollout in self._rollouts.values():
            rollout.close()

    def _send(self, place: Place, sent: Any) -> SampleRequest | Call | Completion:
        try:
            return self._rollouts[place].send(sent)
        except StopIteration as end:
            return end.value

    def _advance(self, place: Place, sent: Any) -> None:
        """Runs a rollout to its next request, to a call that a thread answers, or to its end."""
        answer = self._send(place, sent)
        while isinstance(answer, Call):
            if self._threads is not None:
                self._threads.submit(self._answer, place, answer)
                return
            answer = self._send(place, answer.run())
        if not isinstance(answer, Completion):
            self._put({place: _request(answer)})
            return
        with self._lock:
            del self._rollouts[place]
            if place in self._turn_of:
                self.queue.end(self._turn_of.pop(place))
            self._ended.append((place, answer))
            is_last = not self._rollouts
        if is_last:
            self.queue.close()

    def _answer(self, place: Place, call: Call) -> None:
        try:
            self._advance(place, call.run())
        except BaseException as error:  # noqa: BLE001  the thread that collects raises it
            self._error = self._error or error
            self.queue.close()  # so that an engine without requests does not wait

    def _put(self, requests: Mapping[Place, SampleRequest]) -> None:
        with self._lock:  # an engine may have decoded a request before its places are noted
            continuing = {place: replace(r, continues=self._turn_of.get(place)) for place, r in requests.items()}
            for shared, same in groupby(continuing.items(), key=lambda item: replace(item[1], seeds=())):
                places, alike = zip(*same, strict=True)
                seeds = tuple(seed for request in alike for seed in request.seeds)
                number = self.queue.put(replace(shared, seeds=seeds))
                self._place_of.update({(number, n): place for n, place in enumerate(places)})


def _request(answer: SampleRequest | Call | Completion) -> SampleRequest:
    if not isinstance(answer, SampleRequest) or len(answer.seeds) != 1:
        raise UserError(
            f"a rollout gave {answer}: it must begin with a request, and each of its requests must have one seed"
        )
    return answer
