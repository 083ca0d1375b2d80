"""One training step: packs credited groups, differentiates the loss, steps the optimizer, delivers the weights, computes metrics.

Imports rl.objective, rl.forward, rl.processes, rl.policy and rl.capacity. It does not read a run's options; functions take arguments.
"""
