"""Instructions about the form of a response that a program can check, as IFEval asks for them (arXiv 2311.07911).

kinds     the kinds of instructions by their published names, each a function of the response
"""
