"""Runs untrusted programs.

The grader (rewards.programs.grader, in a worker process) knows the expected results and runs no program. It asks a
zygote, a separate sandboxed interpreter that holds no secrets, to fork a child process for each program. The child
returns its results as plain data, and the grader compares them.

    kernel     Linux system calls that Python does not wrap
    bpf        building blocks of seccomp filters
    filter     the seccomp allowlist
    layers     isolation layers: namespaces, landlock, dropped privileges
    zygote     the process that enters the layers, then forks and ends one child per program
    child      the process that runs the program
    link       the connection between a program and tests that call it
    names      predefined names of programs and tests
    dry_run    runs tests without a program, to find faults of the tests
    values     plain data as JSON
    client     the grader's interface to a zygote
    sessions        the interface to a zygote whose children live side by side and run snippets
    session_zygote  that zygote
    snippets        runs snippets in a child
    isolation  the isolation level of this machine, measured by escape attempts
"""
