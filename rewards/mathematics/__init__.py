r"""Grades a final answer against a reference. docs/grading.md lists the rules.

Everything from the text to the verdict runs in a worker process:

    grader        runs the stages below until one returns a verdict
    normalise     rewrites equivalent notations to one spelling
    comparison    the context that a stage uses to compare parts of an answer

    text_stages        words, choice letters, hedges
    collection_stages  numbers compared as written, matrices, lists, sets and tuples
    equations          equations and inequalities
    scalar_stage       single values

    structure     recognises lists, tuples, sets and matrices; splits a text at its top level
    quantity      splits a value from its unit; compound: quantities in two units; foreign: units in other scripts
    expression    the expression tree; latex_parser builds it
    rational      the exact rational value of an expression, if it has one
    algebra       equality of two expressions, decided by value at many points; evaluation: the value at one point
    intervals     sets of real numbers
    symbolic      math-verify, for references that none of the other modules can read

    copying       detects a correct answer that only repeats an expression of the question
"""
