"""Reward functions of the user: where they come from, what they declare, and how a worker process calls them.

    source         finds the function: in a file, in an installed module, or by value from a notebook
    declaration    the arguments it asks for and the options that `reward` attaches to it
    call           calls it and turns what it returns into a `Result`
    worker         the grading function of a worker process of `rewards.pool`

`rewards.function_verifier` is the side of the trainer's process.
"""
