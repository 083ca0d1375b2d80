"""A GRPO step as people write it by hand, at a shape: `generate`, rows padded to the longest, whole logits, log_softmax, autograd.

Nothing is tuned but the micro-batch, which is TRL's. Optimiser, clipping and loss are as ours (benchmarks/our_side.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.our_side import ADAM_BETAS, MAX_GRAD_NORM, StepTime, clock
from benchmarks.shapes import Given, Shape
from rl.processes.runtime import Runtime
from rollout.torch_sampler import stop_token_ids


class PlainSide:
    def __init__(self, shape: Shape, given: Given, runtime: Runtime) -> None:
        self.shape, self.given, self.runtime = shape, given, runtime
        self.model: Any = given.make_model()  # the stubs know modules by no name
        self.reference = copy.deepcopy(self.model).requires_grad_(False) if shape.kl_weight > 0 else None
        self.stops = sorted(stop_token_ids(self.model, given.tokenizer))
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=shape.learning_rate, betas=ADAM_BETAS, weight_decay=0.0, fused=True
        )
        self.stream = given.stream()

    def step(self) -> StepTime:
        shape, device = self.shape, self.runtime.device
        started = clock(device)
        problems = self.stream.take(shape.problems)
        rows = [list(self.given.renderer.render(p)) for p in problems for _ in range(shape.group_size)]
        prompts = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_side="left")
        seen = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True, padding_side="left").long()
        ids, mask = self.sample(prompts.to(device), seen.to(device))
        width = prompts.shape[1]
        lengths = mask[:, width:].sum(1).tolist()
        texts = self.given.tokenizer.batch_decode(
            [row[width : width + n] for row, n in zip(ids.tolist(), lengths, strict=True)], skip_special_tokens=True
        )
        references = [p.reference for p in problems for _ in range(shape.group_size)]
        verifier = self.given.verifiers[problems[0].verifier]
        values = [score.value or 0.0 for score in verifier.verify_batch(texts, references)]
        rewards = torch.tensor(values, device=device).view(-1, shape.group_size)
        sampled = clock(device) - started
        advantages = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
        self.update(ids, mask, width, advantages)
        return StepTime(
            sample=sampled,
            train=clock(device) - started - sampled,
            lengths=tuple(lengths),
            no_signal=(rewards.std(1) == 0).float().mean().item(),
        )

    @torch.no_grad()
    def sample(self, prompts: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """-> (prompts and completions, which of their tokens are no padding)"""
        with self.runtime.autocast():
            ids = self.model.generate(
                prompts,
                attention_mask=seen,
                max_new_tokens=self.shape.max_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=self.stops,
                pad_token_id=self.stops[0],
                use_cache=True,  # TRL's trainer switches it off in the configuration that all models here share
            )
        completions = ids[:, prompts.shape[1] :]
        ended = torch.isin(completions, torch.tensor(self.stops, device=ids.device)).long()
        before_end = (ended.cumsum(1) - ended) == 0
        return ids, torch.cat([seen, before_end.long()], 1)

    def logprobs(self, model: torch.nn.Module, ids: Tensor, mask: Tensor, width: int) -> Tensor:
        with self.runtime.autocast():
            logits = model(ids, attention_mask=mask).logits[:, width - 1 : -1]
        return logits.float().log_softmax(-1).gather(-1, ids[:, width:, None])[..., 0]

    def update(self, ids: Tensor, mask: Tensor, width: int, advantages: Tensor) -> None:
        count = self.shape.trl_rows
        parts: Sequence[tuple[Tensor, ...]] = list(zip(*(x.split(count) for x in (ids, mask, advantages)), strict=True))
        for part_ids, part_mask, advantage in parts:
            own = part_mask[:, width:]
            logprobs = self.logprobs(self.model, part_ids, part_mask, width)
            ratio = (logprobs - logprobs.detach()).exp()  # one update on each step's samples: no clipping
            loss = -ratio * advantage[:, None]
            if self.reference is not None:
                with torch.no_grad():
                    apart = self.logprobs(self.reference, part_ids, part_mask, width) - logprobs.detach()
                apart = apart + (logprobs.detach() - logprobs)
                loss = loss + self.shape.kl_weight * (apart.exp() - apart - 1)
            (((loss * own).sum(1) / own.sum(1)).sum() / len(ids)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
