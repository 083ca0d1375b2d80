"""What is optimised, as pure functions and values: advantages, losses, reductions, the critic's rule, and algorithms made of them.

Imports nothing else of rl. Tensors go in and out; no model, device or process is known here.
"""
