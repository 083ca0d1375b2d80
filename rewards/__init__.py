"""Verifiers: they turn the text of a completion into a Score. Independent of tokens, models and torch.

The modules of this package are its interface; the sub-packages contain the implementations.

    score              Score, Outcome and the Verifier protocol
    verifiers          the verifiers by name
    verifier_contract  validates what a verifier returns
    extract            finds the final answer in a completion
    answer_format      format rules; combine: correctness and format in one reward
    equation_steps     process supervision: one score for each line with equations

    math_answer        final answers against references    mathematics/ (math_policy: grading options)
    program            programs against tests              programs/, and sandbox/, which runs them
    proof              proofs against statements           proofs/, and metamath/, a Metamath checker
    puzzle_answer      answers to puzzles                  puzzles/
    program_answer         programs, by what they print
    reasoning_gym_tasks    answers to tasks of reasoning-gym

    pooled_verifier    base class of these five verifiers, which grade in the worker processes of a `pool`
    pool               worker processes with deadlines; worker_process: a worker seen from the trainer, worker: its code
    verdict            what a grader returns in a worker process
"""
