"""Models: loading and saving, the policy and its frozen references, LoRA adapters, the critic.

Imports rl.objective, rl.forward, rl.settings and rl.processes.
"""
