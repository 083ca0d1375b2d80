"""The advantages, under the name that other people's scripts import."""

from rl.objective.advantages import gae, group_normalized, leave_one_out, process_supervised

__all__ = ["gae", "group_normalized", "leave_one_out", "process_supervised"]
