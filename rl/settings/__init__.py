"""The options of a run and of the commands: names, help, defaults, bounds and what excludes what.

Imports rl.objective and the names of choices in rl.forward. `options.py` and `defaults.py` import nothing heavy, so that `--help`
answers at once.
"""
