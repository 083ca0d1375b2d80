"""Grades proofs against the statement to prove.

task             the statement as data
grader           extracts the proof from a completion and passes it to the grader of its system
metamath_grader  grades Metamath proofs with rewards.metamath, which runs no other program
prover_grader    grades proofs with an installed prover: the files it gets, and the meaning of its output
coq_grader, lean_grader    what is specific to each prover
prover_process   runs a prover with limits in a sandbox, by the means of rewards.sandbox
"""
