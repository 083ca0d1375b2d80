"""The objective: advantages, per-token losses, reductions, value targets, and the algorithms composed of them.

Pure functions and immutable values over tensors, without models, devices or process groups. Imports no other package of rl.
"""
