"""How a program is held against its tests.

    task      what is asked for
    source    the program in a completion
    judge     has it run and says what came of it
    compare   are these results the expected ones?

The programs themselves run in rewards.sandbox.
"""
