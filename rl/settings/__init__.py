"""The options of a run and of the commands: type, help, bounds and defaults of each, rules between them, and the settings of a run.

Imports rl.objective and the names of choices in rl.forward. `options.py`, `mining.py`, `declare.py` and `defaults.py` import nothing heavy, so that
`--help` answers at once.
"""
