"""Where untrusted programs run.

The judge (rewards.programs.grader, in a worker) knows what is expected and runs nothing. It asks a zygote, an interpreter of
its own that has locked itself in and holds no secret, to fork a child for each program; the child's results come back by
value, and the judge compares them.

    kernel    the system calls that Python has no name for
    bpf       what a seccomp filter is made of
    filter    the seccomp allowlist
    layers    what an interpreter gives up before it runs anything: namespaces, landlock, privileges
    zygote    locks itself in, then forks a child per program and ends it
    child     runs the program
    link      between a program and tests that call it
    names     what programs and tests may use without having defined it
    rehearsal tests without a program, to see what is wrong with them
    values    results by value
    client    the judge's end
    isolation what was really obtained, found by trying to escape
"""
