"""Words that change the meaning of a number beside them, unlike the words of a unit."""

from __future__ import annotations

# Words that make a phrase around a number a sentence or a hedge, not a unit or a label.
_SENTENCE = (
    "and or nor not is are isn was were maybe perhaps probably possibly likely about approximately approx roughly around nearly"
    " almost wrong incorrect false to than if for some i think guess assume assuming unless except but could might may should"
    " would either neither between plus minus vs versus because since when where while else otherwise unknown undefined"
    " unsure least most etc infinity ish"
)
SENTENCE_WORDS = frozenset(_SENTENCE.split())

# Words that operate on the number, as in twice 5 or 5 remainder two.
_OPERATIONS = (
    "negative negated negation minus double doubled twice thrice triple tripled quadruple quadrupled halved quartered"
    " reciprocal inverse inverted opposite remainder divided multiplied modulo mod factorial root raised"
)
OPERATION_WORDS = frozenset(_OPERATIONS.split())

# Words that do so only before the number, as in "the answer squared is 5". (5 cm squared and 5 times are units.)
_OPERATIONS_BEFORE = "half over times squared cubed complement without below under"
OPERATION_WORDS_BEFORE = OPERATION_WORDS | frozenset(_OPERATIONS_BEFORE.split())

# Words with which no unit ends, as in 5 less one or 5 prime.
_LAST = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen twenty hundred"
    " prime repeating recurring conjugate complement point"
)
NO_LAST_WORDS = frozenset(_LAST.split())

# Number words used as units. An answer may omit that of the reference (5 dozen) like any other unit, but not add one.
_NUMBERS = (
    "dozen half halve quarter third fourth fifth sixth seventh eighth ninth tenth hundredth thousandth millionth billionth ten"
    " score gross"
)
NUMBER_WORDS = frozenset(_NUMBERS.split())
