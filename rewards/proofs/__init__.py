"""How a proof is held against what is to be proved.

    task            what is to be proved
    judge           finds the proof in a completion and asks the checker of its system
    metamath_grader  rewards.metamath, ours: nothing is run
    prover_grader    an installed prover: what is asked of it, and what its answer means
    coq_grader, lean_grader    what is different in each of these
    prover_process  runs a prover, bounded and shut in

Provers are shut in by the means of rewards.sandbox.
"""
