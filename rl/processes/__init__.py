"""The processes of a run and their devices: accelerate's launcher, collectives, autocast, sharded weights.

Imports rl.forward and rl.settings.
"""
