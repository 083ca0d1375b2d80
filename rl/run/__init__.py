"""A run from its options to its last checkpoint: data, set-up, training loop, evaluation, checkpoints and the run's folder.

Imports every package before it.
"""
