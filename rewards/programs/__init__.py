"""How a program is held against its tests: `task` says what is asked for, `judge` finds it out, `compare` compares results.

The programs themselves run in rewards.sandbox.
"""
