"""Trains the reward model on the policy's own completions, labelled by the rules: GRPO's Algorithm 1 (DeepSeekMath, arXiv 2402.03300).

The policy learns to write what an old reward model overrates. After every outer iteration the model is trained on the completions of that
iteration, with a replay of earlier ones in each batch.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from heapq import nsmallest
from pathlib import Path

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification

from rewards.errors import UserError
from rl.policy.reward_model import RewardModel, rule_label
from rl.policy.save_model import save_tensors
from rl.processes.runtime import Runtime
from rl.processes.sharding import load_full_state
from rl.update.step_metrics import Metrics, mean
from rollout.records import RolloutGroup

BATCH = 64  # completions of an optimizer step
KEPT = 4096  # earlier completions that wait to be replayed
OPTIMIZER, EXAMPLES = "optimizer.pt", "examples.jsonl"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A completion with its label. step: in which it was sampled. seed: of the completion, a hash: it decides what is kept."""

    question: str
    answer: str
    is_correct: bool
    step: int
    seed: int


@dataclass(kw_only=True)
class RewardTrainer:
    """Trains a reward model after every `every`-th step, in one pass over the completions of these steps.

    replay: share of each batch that is drawn from earlier completions, of which KEPT wait, a uniform sample of all.
    examples: the completions of the steps since the last training, and the earlier ones. With several processes each computes its part
    of every gradient.
    """

    model: RewardModel
    optimizer: torch.optim.Optimizer
    runtime: Runtime
    every: int
    replay: float
    seed: int
    max_grad_norm: float = 1.0
    examples: list[Example] = field(default_factory=list)

    @staticmethod
    def of(
        model: RewardModel, runtime: Runtime, *, learning_rate: float, every: int, replay: float, seed: int
    ) -> RewardTrainer:
        optimizer = torch.optim.AdamW(model.model.parameters(), learning_rate, weight_decay=0.0, fused=True)
        return RewardTrainer(model=model, optimizer=optimizer, runtime=runtime, every=every, replay=replay, seed=seed)

    def after_step(self, groups: Sequence[RolloutGroup], step: int) -> Metrics:
        """Takes in a step's completions; at the end of an iteration trains on them and returns its metrics, else {}."""
        self.examples += labelled(groups, step)
        if step % self.every:
            return {}
        fresh = [example for example in self.examples if example.step > step - self.every]
        earlier = [example for example in self.examples if example.step <= step - self.every]
        draw = random.Random(f"reward model/{self.seed}/{step}")
        losses = [self.update(batch) for batch in batches_with_replay(fresh, earlier, self.replay, draw)]
        self.examples = nsmallest(KEPT, self.examples, key=lambda example: example.seed)
        return {"reward_model/loss": mean(losses), "reward_model/examples": len(fresh)}

    def update(self, batch: Sequence[Example]) -> float:
        """One optimizer step on the mean over the batch of the binary cross-entropy of the logit and the label. -> that mean."""
        mine = batch[self.runtime.rank :: self.runtime.count]
        texts = [self.model.read(example.question, example.answer) for example in mine]
        loss = 0.0
        for indices in self.model.batches(texts):
            logits = self.model.logits([texts[i] for i in indices])[:, 0]
            labels = torch.tensor([float(mine[i].is_correct) for i in indices], device=logits.device)
            part = binary_cross_entropy_with_logits(logits, labels, reduction="sum") / len(batch)
            self.runtime.backward(part)
            loss += part.item()
        loss = sum(self.runtime.gather([loss]))
        parameters = self.optimizer.param_groups[0]["params"]
        self.runtime.sum_gradients(parameters)
        norm = self.runtime.clip_grad_norm(parameters, self.max_grad_norm)
        if not math.isfinite(loss + norm):
            raise UserError(
                f"reward_model_learning_rate is {self.optimizer.param_groups[0]['lr']:g}: the reward model's loss is {loss} and its "
                f"gradient's norm {norm}: its training has diverged. Lower it and resume"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss

    def save(self, folder: Path) -> None:
        """Writes the model in Hugging Face format, the optimizer's state and the examples."""
        self.model.model.save_pretrained(folder)
        self.model.tokenizer.save_pretrained(folder)
        save_tensors(self.optimizer.state_dict(), folder / OPTIMIZER)
        lines = (json.dumps(asdict(example)) + "\n" for example in self.examples)
        (folder / EXAMPLES).write_text("".join(lines), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Loads what save() wrote."""
        saved = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        self.model.model.load_state_dict(saved.state_dict())
        load_full_state(self.optimizer, torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True))
        lines = (folder / EXAMPLES).read_text(encoding="utf-8").splitlines()
        self.examples = [Example(**json.loads(line)) for line in lines]


def labelled(groups: Sequence[RolloutGroup], step: int) -> Iterator[Example]:
    """The completions that the rules could tell right from wrong, and that the reward model could read."""
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        label = rule_label(rollout)
        if label is not None:
            question, completion = rollout.problem.question, rollout.completion
            yield Example(question=question, answer=completion.text, is_correct=label, step=step, seed=completion.seed)


def batches_with_replay(
    fresh: Sequence[Example], earlier: Sequence[Example], share: float, draw: random.Random
) -> Iterator[list[Example]]:
    """The fresh examples in a random order, each once, in batches of BATCH of which `share` are drawn from the earlier ones.

    The last batch is smaller, with the same share. While there are fewer earlier ones than a batch is to have, it has all of them.
    """
    order, per_batch = draw.sample(fresh, len(fresh)), BATCH - round(share * BATCH)
    for start in range(0, len(order), per_batch):
        part = order[start : start + per_batch]
        replayed = min(len(earlier), round(len(part) * share / (1 - share)))
        yield part + draw.sample(earlier, replayed)
