"""One step ahead: while a step is trained on, the completions of the next one are sampled, with the weights from before it.

What a completion was sampled with is one update old when it is trained on. The weight of truncated importance sampling,
min(pi(t) / s(t), C) with the policy as it is before the update and the engine's own log-prob, corrects for that as it does
for an engine that rounds otherwise (arXiv 2410.18252 trains so).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from rollout.collect import Collected


class Ahead:
    """last_step: after which nothing more is sampled. waiting: completions of the step to come, where a resumed run has them."""

    def __init__(self, last_step: int, waiting: Collected | None = None) -> None:
        self.last_step = last_step
        self.thread = ThreadPoolExecutor(1)
        self.coming: Future[Collected] | None = None
        if waiting is not None:
            self.coming = Future()
            self.coming.set_result(waiting)

    def take(self, step: int, sample: Callable[[int], Collected]) -> Collected:
        """This step's completions; sampling of the next step's begins."""
        now = self.coming.result() if self.coming is not None else sample(step)
        self.coming = self.thread.submit(sample, step + 1) if step < self.last_step else None
        return now

    def wait(self) -> Collected | None:
        """Until the engine is free for new weights. -> what the next step will take."""
        return self.coming.result() if self.coming is not None else None

    def close(self) -> None:
        self.thread.shutdown(cancel_futures=True)
