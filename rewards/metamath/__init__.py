"""A proof checker for Metamath: N. Megill, D. A. Wheeler, "Metamath: A Computer Language for Mathematical Proofs", 2nd ed.
2019, chapter 4 (the language) and appendix B (compressed proofs).

    database   reads a database: what is declared, in which scope, and what each assertion requires
    kernel     checks a proof of one of its assertions, or of a new one

`python -m rewards.metamath file.mm` checks every proof of a database.
"""
