"""One step: pack credited groups, differentiate the loss, step the optimiser, deliver the weights, measure.

Imports rl.objective, rl.forward, rl.processes, rl.policy and rl.capacity. It knows no options: what it needs is passed in.
"""
