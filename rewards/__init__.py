"""Text in, Score out. Knows nothing of tokens, models or torch.

What the other rooms and users call stands here in front; the workings stand in folders behind it.

    score             Score, Outcome, and what a verifier is
    verifiers         the verifiers by name
    door              what a verifier returned is looked at before it is used
    extract           where in a completion is the final answer?
    answer_format     is it written as it was asked for?     combine: that and correctness in one reward
    equation_steps    is every equation of a line true? One score for each step

    math_answer       final answers against references       mathematics/    (math_policy: where people differ)
    program           programs against tests                 programs/, and sandbox/, where they run
    proof             proofs against statements              proofs/, and metamath/, a checker of our own
    puzzle_answer     answers to puzzles                     puzzles/
    reasoning_gym_tasks    answers to tasks of reasoning-gym

    pooled_verifier   what these five have in common: each judges in the processes of a `pool`
    pool              workers with deadlines; worker_process is the trainer's end of one, worker the process itself
    verdict           what a judge says in such a process
"""
