"""A proof checker for Metamath: N. Megill, D. A. Wheeler, "Metamath: A Computer Language for Mathematical Proofs", 2nd ed.
2019, chapter 4 (the language) and appendix B (compressed proofs).

    database   reads a database: declarations, scopes, and the hypotheses of each assertion
    kernel     checks a proof of an assertion

`python -m rewards.metamath file.mm` checks every proof of a database.
"""
