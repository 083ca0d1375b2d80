"""The trainer: scored groups of completions in, a better policy out.

Its packages, each importing only those before it: objective, forward, settings, processes, policy, capacity, update, view, run, command.
tests/test_architecture.py holds the table. `rl.cli` is the command line; `rl.advantages` and `rl.losses` are names that scripts import.
"""
