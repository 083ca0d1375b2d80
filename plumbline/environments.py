"""Environments that are ready to be played: --environment plumbline.environments:GuessNumber."""

from rollout.games import Calculator, GuessNumber

__all__ = ["Calculator", "GuessNumber"]
