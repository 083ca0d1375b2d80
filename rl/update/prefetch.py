"""Sampling one step ahead: during the update of a step, a thread samples the next step's completions with the weights from before it.

Completions are then trained on one update after the weights that sampled them (as in arXiv 2410.18252). The truncated importance
weight min(exp(b - s), C), with the policy's log-prob b before the update and the engine's s, corrects for that, as it does for
rounding differences between engine and trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from rollout.collect import Collected


class Prefetcher:
    """Samples the completions of the next step in a thread.

    last_step: the last step to sample for. prefetched: completions of the first step, from the checkpoint of a resumed run.
    can_sample: whether there are problems left to sample; it is asked once a step's completions are graded.

    On a GPU the thread has its own CUDA stream, so that its kernels run concurrently with the update's. The stream first waits for the
    work that the trainer has queued, such as a delivery of weights, and `wait` makes the trainer's stream wait for it.
    """

    def __init__(
        self,
        last_step: int,
        prefetched: Collected | None = None,
        *,
        device: torch.device | None = None,
        can_sample: Callable[[], bool] = lambda: True,
    ) -> None:
        self.last_step = last_step
        self.can_sample = can_sample
        self.stream = torch.cuda.Stream(device) if device is not None and device.type == "cuda" else None
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[Collected] | None = None
        if prefetched is not None:
            self.pending = Future()
            self.pending.set_result(prefetched)

    def take(self, step: int, sample: Callable[[int], Collected]) -> Collected:
        """Returns this step's completions, and starts to sample the next step's."""
        collected = self.wait() or sample(step)
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        goes_on = step < self.last_step and self.can_sample()
        self.pending = self.thread.submit(self._sample_on_stream, sample, step + 1) if goes_on else None
        return collected

    def _sample_on_stream(self, sample: Callable[[int], Collected], step: int) -> Collected:
        with torch.cuda.stream(self.stream):  # no effect if it is None
            return sample(step)

    def wait(self) -> Collected | None:
        """Waits until sampling has ended, so that the engine can get new weights. Returns the next step's completions, if any."""
        if self.pending is None:
            return None
        collected = self.pending.result()
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
        return collected

    def close(self, *, wait: bool = True) -> None:
        """Ends the thread. wait: returns only when the sampling in progress, which cannot be interrupted, has ended."""
        self.thread.shutdown(wait=wait, cancel_futures=True)
