"""A run from its options to its last checkpoint: set-up, the loop, evaluation, checkpoints and the run's folder.

Imports every package before it.
"""
