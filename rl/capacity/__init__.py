"""Predictions before a run: its floating-point operations, its memory, and the sizes that fit the device.

Imports rl.objective, rl.forward, rl.settings and rl.policy.
"""
