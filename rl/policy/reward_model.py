"""A reward model: a classification model with a tokenizer of its own that says how good an answer is.

A sequence classification model with one label gives an answer its logit, as DeepSeekMath's outcome supervision has it (arXiv 2402.03300,
section 4.1.2). A token classification model with two labels, as TRL's PRM trainer writes it, gives each step of an answer the probability
that it is correct, read at the step's last token (section 4.1.3). Whether the answer is correct is never the model's opinion.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rewards.errors import UserError, first_line
from rewards.score import Outcome, Score
from rl.policy.load import context_length, load_pretrained, require_folder
from rl.policy.offload import on_device, to_host
from rl.policy.policy import ContextFactory
from rollout.answer_text import AnswerText, encode_answer
from rollout.records import Rollout
from rollout.steps import written_steps

PART = "reward_model"  # of a score: the model's own
# The class of transformers, and the labels, by the end of the architecture's name.
KINDS = {
    "ForSequenceClassification": (AutoModelForSequenceClassification, 1),
    "ForTokenClassification": (AutoModelForTokenClassification, 2),
}
CORRECT = 1  # of the two labels of a step
log = logging.getLogger(__name__)


def rule_label(rollout: Rollout) -> bool | None:
    """Whether the rules found the answer correct; None where they could not tell."""
    return {Outcome.CORRECT: True, Outcome.WRONG: False, Outcome.NO_ANSWER: False}.get(rollout.score.outcome)


@dataclass(frozen=True, kw_only=True, eq=False)
class RewardModel:
    """A classification model that scores answers in batches. It is in eval mode, also while it is trained.

    weight: w of the reward w * model + (1 - w) * rule. token_budget: padded tokens in one forward pass; one text may have more.
    longest: tokens that it can read. autocast, on_device: as of a Policy.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    weight: float
    token_budget: int
    longest: float = math.inf
    autocast: ContextFactory = nullcontext
    on_device: ContextFactory = nullcontext

    @staticmethod
    def load(
        name: str,
        device: torch.device,
        *,
        weight: float = 1.0,
        token_budget: int = 8192,
        rounded: bool = False,
        autocast: ContextFactory = nullcontext,
    ) -> RewardModel:
        """The model of a folder or hub name, frozen. rounded: see load_pretrained. Raises UserError for a model of another kind."""
        architecture = architecture_of(name)
        auto, num_labels = next(kind for end, kind in KINDS.items() if architecture.endswith(end))
        model, tokenizer = load_pretrained(name, device, rounded=rounded, option="reward_model", auto=auto)
        if model.config.num_labels != num_labels:
            raise UserError(
                f"reward_model is {name!r}: it has {model.config.num_labels} labels; a {architecture} that scores "
                + ("an answer has one, its reward" if num_labels == 1 else "steps has two, and 1 is correct")
            )
        if num_labels == 2 and not tokenizer.is_fast:
            raise UserError(
                f"reward_model is {name!r}: it needs a tokenizer.json, which says where in a text its tokens stand"
            )
        return RewardModel(
            model=model.eval().requires_grad_(False),
            tokenizer=tokenizer,
            weight=weight,
            token_budget=token_budget,
            longest=min(context_length(model) or math.inf, tokenizer.model_max_length),
            autocast=autocast,
        )

    @property
    def scores_steps(self) -> bool:
        return self.model.config.num_labels == 2

    @property
    def bytes_of_training(self) -> int:
        """Bytes of the gradients and the two moments of the weights that are trained."""
        return sum(3 * p.nbytes for p in self.model.parameters() if p.requires_grad)

    def offloaded(self) -> RewardModel:
        """This frozen model with its weights in the host's memory between uses."""
        device = self.model.device
        to_host(self.model)
        return replace(self, on_device=partial(on_device, self.model, device))

    def read(self, question: str, answer: str, step_ends: Sequence[int] = ()) -> AnswerText:
        """See encode_answer."""
        return encode_answer(self.tokenizer, question, answer, step_ends)

    def batches(self, texts: Sequence[AnswerText]) -> Iterator[list[int]]:
        """The indices of texts of about one length, whose padded rows have at most token_budget tokens."""
        batch: list[int] = []
        for i in sorted(range(len(texts)), key=lambda i: len(texts[i].token_ids)):
            if batch and (len(batch) + 1) * len(texts[i].token_ids) > self.token_budget:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def logits(self, texts: Sequence[AnswerText]) -> Float[Tensor, ...]:
        """Float[B, 1], or of a model of steps Float[B, N, 2], of right-padded rows.

        A model finds a text's last token as the last that is no padding: one whose config names no padding gets a token that ends none
        of these texts.
        """
        rows, config = [text.token_ids for text in texts], self.model.config.get_text_config()
        own, last = config.pad_token_id, {row[-1] for row in rows}
        pad = next(i for i in count() if i not in last) if own is None else own
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *(width - len(row)) * [pad]] for row in rows], device=self.model.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.model.device)
        mask = torch.arange(width, device=self.model.device) < lengths[:, None]
        config.pad_token_id = pad
        try:
            with self.autocast():
                return self.model(input_ids=ids, attention_mask=mask.long()).logits.float()
        finally:
            config.pad_token_id = own

    @torch.no_grad()
    def scores(self, texts: Sequence[AnswerText]) -> list[list[float]]:
        """Of each text its logit in a list, or the probability that each of its steps is correct."""
        found: list[list[float]] = [[] for _ in texts]
        with self.on_device():
            for batch in self.batches(texts):
                for i, row in zip(batch, self.logits([texts[i] for i in batch]).cpu(), strict=True):
                    found[i] = (
                        row.softmax(-1)[list(texts[i].step_tokens), CORRECT].tolist()
                        if self.scores_steps
                        else row.tolist()
                    )
        return found

    def rewarded(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with the model's scores in their rewards. What the rules could not grade stays without a reward; what the model
        cannot score (too long a text, a score that is no finite number) loses its own."""
        texts = {i: self._text(rollout) for i, rollout in enumerate(rollouts) if rollout.is_graded}
        readable = [i for i, text in texts.items() if len(text.token_ids) <= self.longest]
        scores = dict(zip(readable, self.scores([texts[i] for i in readable]), strict=True))
        found, failures = list(rollouts), list[str]()
        for i, text in texts.items():
            if i not in scores:
                failures.append(
                    f"the text has {len(text.token_ids)} tokens, and the reward model reads at most {self.longest:.0f}"
                )
            elif not all(map(math.isfinite, scores[i])):
                failures.append(f"the reward model gave {scores[i][0] if len(scores[i]) == 1 else scores[i]}")
            else:
                found[i] = self._mixed(rollouts[i], scores[i])
                continue
            found[i] = replace(rollouts[i], score=Score(None, Outcome.CRASHED, rollouts[i].score.parts, failures[-1]))
        if failures:
            log.warning("reward_model: %d of %d answers have no reward: %s", len(failures), len(texts), failures[0])
        return found

    def _text(self, rollout: Rollout) -> AnswerText:
        steps = written_steps(rollout.problem, rollout.completion) if self.scores_steps else []
        return self.read(rollout.problem.question, rollout.completion.text, [step.end for step in steps])

    def _mixed(self, rollout: Rollout, scores: Sequence[float]) -> Rollout:
        """w * model + (1 - w) * rule, for the whole answer or for each step. The score's part is the model's; of steps that of the worst."""
        if not scores:  # an answer without steps
            return rollout
        value, w = rollout.score.value, self.weight
        assert value is not None
        score = replace(rollout.score, parts={**rollout.score.parts, PART: min(scores)})
        if not self.scores_steps:
            return replace(rollout, score=replace(score, value=w * scores[0] + (1 - w) * value))
        mixed = [w * s + (1 - w) * rule for s, rule in zip(scores, rollout.step_rewards, strict=True)]
        return replace(rollout, score=score, step_rewards=tuple(mixed))


def architecture_of(name: str | Path) -> str:
    """The architecture in a model's config.json. Raises UserError unless it is one of KINDS."""
    require_folder(name, "reward_model")
    try:
        named = AutoConfig.from_pretrained(name).architectures or ["unnamed architecture"]
    except (OSError, ValueError) as error:
        raise UserError(
            f"reward_model is {str(name)!r}: it has no readable config.json ({first_line(error)}); give a folder in Hugging Face format or "
            "a hub name"
        ) from None
    if not named[0].endswith(tuple(KINDS)):
        raise UserError(
            f"reward_model is {str(name)!r}: it is a {named[0]}, which has no trained head that scores answers; give a model for sequence "
            "classification with one label, or one for token classification with two for grpo-process"
        )
    return named[0]
