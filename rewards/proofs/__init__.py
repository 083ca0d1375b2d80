"""How a proof is held against what is to be proved: `task` says what that is, `judge` finds the proof and asks its checker.

metamath_judge    ours, rewards.metamath: nothing is run
coq_judge, lean_judge    an installed prover, as prover_judge asks it and prover_process runs it
"""
