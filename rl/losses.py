"""The losses, under the name that other people's scripts import."""

from rl.objective.losses import clipped_surrogate, kl_estimate, value_loss

__all__ = ["clipped_surrogate", "kl_estimate", "value_loss"]
