"""Budget forcing as rules of a rollout (s1, arXiv 2501.19393, section 3.1): it ends the model's thinking at a maximum, or prolongs it.

With a maximum that is drawn from a range it is the interruption of ScaleRL (arXiv 2510.13786). No stop string marks the end of
thinking, since it would have to be looked for in the text of every row after every token: a turn is read when it comes back.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedModel

from rewards.errors import UserError
from rollout.prompts import PromptRenderer
from rollout.records import Completion, FinishReason, Problem, Thinking
from rollout.rollouts import Episode, Fixed, RolloutFunction, Turns, one_shot
from rollout.sampler import SamplingParams
from rollout.thinking_budget import BUDGET_DRAW, ThinkingBudget
from rollout.turn import TurnReader, stop_token_ids


@dataclass(frozen=True, kw_only=True)
class BudgetForcing:
    """A RolloutFunction whose thinking keeps to a budget. Forced tokens count as thinking; the policy is not trained on them.

    The model ends its thinking where it writes `budget.end` or ends its turn. `budget.waits` times this end, with all that follows it, is
    taken off and `budget.wait` is appended, as long as that fits the maximum. At the maximum `budget.ending` is appended, and the model
    answers in what is left of the completion.

    Tokens are kept as the engine wrote them: a token that reaches into what is taken off is taken off whole.
    turns, stop_strings: as the engine has them, to read the text of the completion.
    """

    budget: ThinkingBudget
    turns: TurnReader
    stop_strings: tuple[str, ...] = ()

    @cached_property
    def wait(self) -> Fixed:
        return self._forced(self.budget.wait, "wait_phrase")

    @cached_property
    def ending(self) -> Fixed:
        return self._forced(self.budget.ending, "thinking_end or closing_phrase")

    def _forced(self, text: str, option: str) -> Fixed:
        forced = Fixed.of(text, self.turns.tokenizer)
        if self._decode(forced.token_ids) != text:
            raise UserError(
                f"{option} is {text!r}: to the model's tokenizer it is {self._decode(forced.token_ids)!r}; choose another text"
            )
        return forced

    def at(self, most: int) -> BudgetForcing:
        """The same rules with this maximum."""
        return replace(self, budget=replace(self.budget, least=most, most=most))

    def require_room(self, max_tokens: int) -> None:
        """Raises UserError unless a completion has room for the longest thinking, what ends it, and one token of an answer."""
        room = max_tokens - len(self.ending.token_ids) - 1
        if self.budget.most > room:
            raise UserError(
                f"thinking_budget is {self.budget.bounds}: a completion of max_tokens {max_tokens} has room for {max(0, room)} tokens before "
                f"{self.budget.ending!r} and an answer; lower it, or raise max_tokens"
            )
        if self.budget.waits and self.budget.most <= len(self.wait.token_ids):
            raise UserError(
                f"thinking_waits is {self.budget.waits}: wait_phrase has {len(self.wait.token_ids)} tokens, and thinking_budget "
                f"{self.budget.bounds} has no room for them and a thought; raise thinking_budget"
            )

    def __call__(self, episode: Episode) -> Turns:
        left = maximum = self.budget.maximum(episode.seed_of(BUDGET_DRAW))
        parts: list[Completion | Fixed] = []
        num_turns = num_waits = 0  # turns that were taken off count: each has a seed of its own
        while left > 0:
            turn = yield episode.ask(parts, at_most=left, turn=num_turns)
            num_turns += 1
            thought, has_ended = self._thought(turn)
            if not has_ended:
                parts += self._first(turn, thought)
                left -= thought
                break
            if num_waits == self.budget.waits or left - thought <= len(self.wait.token_ids):
                parts.append(turn)
                if turn.finish_reason is FinishReason.LENGTH and episode.num_left(parts):
                    rest: Completion = yield episode.ask(parts, turn=num_turns, is_last=True)
                    parts.append(self._until_stop(turn.token_ids, rest))
                return self._whole(episode, parts, Thinking(num_tokens=maximum - left + thought, num_waits=num_waits))
            parts += [*self._first(turn, thought), self.wait]
            left -= thought + len(self.wait.token_ids)
            num_waits += 1
        parts.append(self.ending)
        answer: Completion = yield episode.ask(parts, turn=num_turns, is_last=True)
        parts.append(self._until_stop(self.ending.token_ids, answer))
        return self._whole(episode, parts, Thinking(num_tokens=maximum - left, num_waits=num_waits, is_cut=True))

    def _whole(self, episode: Episode, parts: Sequence[Completion | Fixed], thinking: Thinking) -> Completion:
        """The joined completion. Its text is that of all its tokens together: a character may have tokens of two turns."""
        whole = episode.join(parts)
        (text,) = self.turns.texts([whole.token_ids], self.stop_strings)
        return replace(whole, text=text, seed=episode.seed_of(0), thinking=thinking)

    def _thought(self, turn: Completion) -> tuple[int, bool]:
        """The number of the turn's tokens before the end of thinking, and whether the model has ended it. Where the limit has cut the
        turn, a beginning of `budget.end` at its end is not counted."""
        text, end = self._decode(turn.token_ids), self.budget.end
        if turn.finish_reason is FinishReason.STOP:
            ends = [at for mark in (end, *self.stop_strings) if (at := text.find(mark)) >= 0]
            return (self._num_tokens(turn, min(ends)) if ends else len(turn.token_ids) - 1), True
        if (at := text.find(end)) >= 0:
            return self._num_tokens(turn, at), True
        begun = max((n for n in range(1, len(end)) if text.endswith(end[:n])), default=0)
        return (self._num_tokens(turn, len(text) - begun) if begun else len(turn.token_ids)), False

    def _until_stop(self, before: tuple[int, ...], turn: Completion) -> Completion:
        """The turn up to a stop string that has begun in the tokens before it. The engine looks for one in each turn apart, so it does not
        stop there, and what it samples behind is thrown away."""

        def has_stopped(n: int) -> bool:
            text = self._decode((*before, *turn.token_ids[:n]))
            return any(stop in text for stop in self.stop_strings)

        lengths = range(1, len(turn.token_ids) + 1)
        if not has_stopped(lengths[-1]):
            return turn
        (stopped,) = self._first(turn, lengths[bisect_left(lengths, True, key=has_stopped)])
        return replace(stopped, finish_reason=FinishReason.STOP)

    def _num_tokens(self, turn: Completion, length: int) -> int:
        """The number of the turn's first tokens whose text has at most this length."""
        token_ids = turn.token_ids
        return bisect_right(range(1, len(token_ids) + 1), length, key=lambda n: len(self._decode(token_ids[:n])))

    def _first(self, turn: Completion, n: int) -> list[Completion]:
        """The turn's first n tokens; none if n is 0, as no completion is empty."""
        if n == 0:
            return []
        token_ids, logprobs = turn.token_ids[:n], turn.sampler_logprobs[:n]
        text = self._decode(token_ids)
        return [replace(turn, token_ids=token_ids, sampler_logprobs=logprobs, loss_mask=turn.loss_mask[:n], text=text)]

    def _decode(self, token_ids: Sequence[int]) -> str:
        decoded = self.turns.tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(decoded)


def rollout_within(
    budget: ThinkingBudget | None,
    model: PreTrainedModel,
    renderer: PromptRenderer,
    params: SamplingParams,
    problem: Problem,
) -> RolloutFunction:
    """The rollout of completions with this thinking budget; of one turn without one. problem: any one of them, to see its prompt.

    Raises UserError where the phrases or the answer have no room, or where the prompt leaves nothing to think.
    """
    if budget is None:
        return one_shot
    tokenizer = renderer.tokenizer
    turns = TurnReader.of(tokenizer, stop_token_ids(model, tokenizer))
    forcing = BudgetForcing(budget=budget, turns=turns, stop_strings=params.stop_strings)
    forcing.require_room(params.max_tokens)
    prompts = (str(tokenizer.decode(list(renderer.render(problem)))), problem.question)
    if [text.rstrip().endswith(budget.end) for text in prompts] == [True, False]:  # the template has ended the thinking
        raise UserError(
            f"thinking_budget is {budget.bounds}: the prompt of problem {problem.id!r} ends with {budget.end!r}, so the model does not think; "
            "leave it out, or choose another template with --chat-template"
        )
    return forcing
