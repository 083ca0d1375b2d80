"""Grades programs against tests.

    task      the task as data: tests, and what a program must define
    source    extracts the program from a completion
    grader    has the program run and grades the results
    compare   compares results with the expected ones

The programs themselves run in rewards.sandbox.
"""
