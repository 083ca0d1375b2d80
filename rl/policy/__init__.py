"""Models that are trained or score: loading, the policy and its frozen references, LoRA adapters, the critic, saving.

Imports rl.objective, rl.forward, rl.settings and rl.processes.
"""
