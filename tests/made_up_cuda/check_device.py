"""What tests/made_up_cuda/test_device.py asks of the made-up device."""

from __future__ import annotations

import json

from tests.made_up_cuda.device import CUDA, without_contents  # isort: skip  (before torch)

import torch

from tests.made_up_cuda.count import Count


def mixes(a: torch.Tensor, b: torch.Tensor) -> bool:
    try:
        _ = a + b
    except RuntimeError as error:
        return "same device" in str(error)
    return False


def main() -> None:
    with without_contents():
        x, w = (torch.zeros(shape, device=CUDA, requires_grad=True) for shape in ((4, 8), (8, 16)))
        with Count() as count:
            with torch.autocast("cuda", torch.bfloat16):
                y = x @ w
            (2 * y.float()).sum().backward()
            found = float(y[0, 0])
            torch.ones(3).to(CUDA)
        print(
            json.dumps(
                {
                    "dtype": str(y.dtype),
                    "read": found,
                    "grad": str(w.grad.device) if w.grad is not None else None,
                    "reads": dict(count.reads),
                    "copies": dict(count.copies),
                    "products": count.launches["mm"],
                    "flops": count.flops["mm"],
                    "bytes of products": count.bytes["mm"],
                    "cpu and gpu": mixes(x, torch.zeros(4, 8)),
                    "two gpus": mixes(x, torch.zeros(4, 8, device="cuda:1")),
                }
            )
        )


if __name__ == "__main__":
    main()
