"""Trains the stand-in, in a minute."""

from __future__ import annotations

import torch
from transformers import Qwen2ForCausalLM

from rl.run.tiny import tiny_model, tiny_tokenizer
from rollout.demonstrations import demonstrate
from rollout.problem_stream import ProblemStream
from rollout.problems import load_problems
from rollout.prompts import PromptRenderer
from tests.rl.stand_in import FOLDER

STEPS, PROBLEMS, RATE = 600, 64, 4e-3


def main() -> None:
    tokenizer = tiny_tokenizer()
    config = tiny_model(tokenizer, seed=0, device=torch.device("cpu")).config
    config.update({"hidden_size": 64, "intermediate_size": 192})
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, (0.9, 0.99), weight_decay=0.0, fused=True)
    stream, renderer = ProblemStream.of(load_problems("arithmetic"), 0), PromptRenderer(tokenizer, style="plain")
    for step in range(1, STEPS + 1):
        texts = [
            (g.prompt_ids, g.rollouts[0].completion.token_ids)
            for g in demonstrate(stream.take(PROBLEMS), renderer).groups
        ]
        width = max(len(p) + len(c) for p, c in texts)
        tokens, labels = torch.zeros(2, PROBLEMS, width, dtype=torch.long)
        labels -= 100  # which the loss leaves out
        for row, (prompt, completion) in enumerate(texts):
            end = len(prompt) + len(completion)
            tokens[row, :end] = torch.tensor([*prompt, *completion])
            labels[row, len(prompt) : end] = torch.tensor(completion)
        loss = model(tokens, labels=labels).loss
        loss.backward()
        optimizer.param_groups[0]["lr"] = RATE * min(1, step / 20)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(step, loss.item(), flush=True)
    model.to(torch.bfloat16).save_pretrained(FOLDER)  # pyright: ignore[reportArgumentType]  the stubs lose `self`


if __name__ == "__main__":
    main()
