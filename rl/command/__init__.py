"""The `plumbline` commands besides training: plan, doctor, evaluate, launch, serve-vllm.

Imports every package of rl; none imports it but rl.cli.
"""
