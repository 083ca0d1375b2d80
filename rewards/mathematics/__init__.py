r"""How a final answer is held against a reference. docs/grading.md says by which rules.

From the text to the verdict, all of it in a worker process:

    normalise     one spelling for each way of writing the same mathematics
    judge         runs the stages below, each of which decides or passes on
    comparison    what a stage is given, to compare parts with

    text_stages        words, choice letters, hedges
    collection_stages  numbers as they are written, matrices, lists, sets and tuples
    equations          equations and inequalities
    scalar_stage       one value against another

    structure     a list, a tuple, a matrix? splitting at the top level
    quantity      a number and its unit; compound: in two units; foreign: in other scripts
    expression    what an expression is, once read; latex_parser reads it
    rational      its exact value, where it has one
    algebra       whether two are equal, by value at many points; evaluation: its value at one
    intervals     sets of real numbers
    symbolic      math-verify, for what none of the others can read

    copying       whether a right answer is only an expression of the question
"""
