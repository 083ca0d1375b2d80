"""One step ahead: while a step is trained on, the completions of the next one are sampled, with the weights from before it.

What a completion was sampled with is one update old when it is trained on. The weight of truncated importance sampling,
min(pi(t) / s(t), C) with the policy as it is before the update and the engine's own log-prob, corrects for that as it does
for an engine that rounds otherwise (arXiv 2410.18252 trains so).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from rollout.collect import Collected


class Ahead:
    """last_step: after which nothing more is sampled. waiting: completions of the step to come, where a resumed run has them.

    On a GPU the thread works on a stream of its own, or its kernels would only take turns with the update's. It begins when what
    the trainer has asked for until then is done, weights that are delivered among it, and the trainer waits for it in turn.
    """

    def __init__(self, last_step: int, waiting: Collected | None = None, *, device: torch.device | None = None) -> None:
        self.last_step = last_step
        self.stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None
        self.thread = ThreadPoolExecutor(1)
        self.coming: Future[Collected] | None = None
        if waiting is not None:
            self.coming = Future()
            self.coming.set_result(waiting)

    def take(self, step: int, sample: Callable[[int], Collected]) -> Collected:
        """This step's completions; sampling of the next step's begins."""
        now = self.wait() or sample(step)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        self.coming = self.thread.submit(self._aside, sample, step + 1) if step < self.last_step else None
        return now

    def _aside(self, sample: Callable[[int], Collected], step: int) -> Collected:
        with torch.cuda.stream(self.stream):  # None changes nothing
            return sample(step)

    def wait(self) -> Collected | None:
        """Until the engine is free for new weights. -> what the next step will take."""
        if self.coming is None:
            return None
        collected = self.coming.result()
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
        return collected

    def close(self, *, wait: bool = True) -> None:
        """wait: for the sampling under way, which nothing can end early."""
        self.thread.shutdown(wait=wait, cancel_futures=True)
