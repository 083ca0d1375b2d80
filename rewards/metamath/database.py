"""Reads a Metamath database: declarations, scopes, and the hypotheses of each assertion (section 4.1 of the book).

Proofs are stored as text and parsed by rewards.metamath.kernel only when they are checked, so that the 41 MB of set.mm
are read in seconds.
"""

from __future__ import annotations

import itertools
import re
from collections import ChainMap
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Pair = tuple[str, str]  # two variables, sorted by name
Template = tuple[str, ...]
"""An expression as alternating runs of constants and single variables: (" |- (", "ph", " ->", "ps", " )"). Every
constant is preceded by a space, as is every symbol of the expressions that the kernel builds from templates."""

_ILLEGAL = re.compile(r"[^\t\n\f\r -~]")
_LABEL = re.compile(r"[A-Za-z0-9._-]+")
_KEYWORD = re.compile(r"\$(\S*)")
_ENDS = {"{": "", "}": "", "[": "]", "p": "=.", **dict.fromkeys("cvdfea", ".")}
_SPACING = 1 << 20  # between the numbers of consecutive statements, so that new ones can be inserted before any of them
_LAST = 1 << 62


class DatabaseError(ValueError):
    """The database is invalid. The message says where and why."""


@dataclass(eq=False, slots=True)
class Scope:
    """The declarations of a block ${ ... $} so far, with the numbers of the declaring statements."""

    parent: Scope | None = None
    variables: dict[str, int] = field(default_factory=dict)
    floating: dict[str, Hypothesis] = field(default_factory=dict)  # by variable
    essential: list[Hypothesis] = field(default_factory=list)
    distinct: dict[Pair, int] = field(default_factory=dict)

    def chain(self) -> Iterator[Scope]:
        """This block and all enclosing blocks, innermost first."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent

    def distinct_before(self, number: int) -> set[Pair]:
        return {pair for scope in self.chain() for pair, since in scope.distinct.items() if since < number}


@dataclass(frozen=True, eq=False, slots=True)
class Hypothesis:
    """A $f statement, which declares the type of `variable`, or a $e statement, whose `variable` is empty."""

    label: str
    number: int
    scope: Scope
    expression: Template
    variable: str


@dataclass(frozen=True, eq=False, slots=True)
class Assertion:
    """A $a statement (`proof` is None) or a $p statement, with its mandatory hypotheses and pairs of distinct variables."""

    label: str
    number: int
    scope: Scope
    expression: Template
    hypotheses: tuple[Hypothesis, ...]
    distinct: tuple[Pair, ...]
    proof: str | None
    where: str

    def may_use(self, statement: Hypothesis | Assertion) -> bool:
        """Whether `statement` is active at the position of this assertion."""
        if isinstance(statement, Hypothesis) and all(scope is not statement.scope for scope in self.scope.chain()):
            return False
        return statement.number < self.number


@dataclass(frozen=True, eq=False)
class Database:
    """All declarations. Constants and labels are unique, and a variable has the same type throughout the database."""

    constants: MutableMapping[str, int] = field(default_factory=dict)
    types: MutableMapping[str, str] = field(default_factory=dict)  # by variable; "" while it has no type
    statements: MutableMapping[str, Hypothesis | Assertion] = field(default_factory=dict)
    outermost: Scope = field(default_factory=Scope)

    def theorems(self) -> Iterator[Assertion]:
        """All $p statements in order."""
        for statement in self.statements.values():
            if isinstance(statement, Assertion) and statement.proof is not None:
                yield statement

    def theorem(self, label: str) -> Assertion:
        found = self.statements.get(label)
        if not isinstance(found, Assertion) or found.proof is None:
            raise DatabaseError(f"the database has no $p statement labelled {label!r}")
        return found

    def with_theorem(self, source: str, *, before: str | None = None) -> tuple[Database, Assertion]:
        """This database with a new theorem in its own block, before the statement labelled `before` or at the end; and
        the theorem.

        source: $v, $f, $d and $e statements, then one $p statement, whose proof (for instance `?`) is ignored.
        """
        if len(source) >= _SPACING:
            raise DatabaseError(f"the statement has {len(source)} characters: it must have fewer than {_SPACING}")
        if before is not None and before not in self.statements:
            raise DatabaseError(f"before: the database has no statement labelled {before!r}")
        end = _LAST if before is None else self.statements[before].number
        extended = Database(
            ChainMap({}, self.constants), ChainMap({}, self.types), ChainMap({}, self.statements), self.outermost
        )
        reader = _Reader(extended, Scope(self.outermost), iter(range(end - _SPACING + 1, end)))
        reader.read(source, "statement", None, kinds="vfdep")
        if len(reader.assertions) != 1:
            raise DatabaseError("the statement must be $v, $f, $d and $e statements, then one $p statement")
        return extended, reader.assertions[0]


def read_database(path: Path) -> Database:
    """The database in a file. Included files must be in the same folder."""
    database = Database()
    path = path.resolve()
    _Reader(database, database.outermost, itertools.count(_SPACING, _SPACING)).include(path, path.parent)
    return database


def parse_database(source: str) -> Database:
    """The database in a text, which cannot include files."""
    database = Database()
    _Reader(database, database.outermost, itertools.count(_SPACING, _SPACING)).read(source, "database", None)
    return database


class _Reader:
    """Reads statements, checks each in its context, and adds them to a database."""

    def __init__(self, database: Database, scope: Scope, numbers: Iterator[int]) -> None:
        self.assertions: list[Assertion] = []
        self._database = database
        self._scope = scope
        self._numbers = numbers
        self._included: set[Path] = set()
        self._number = 0  # of the current statement
        self._where = ""

    def include(self, path: Path, folder: Path) -> None:
        """Reads a file, unless it has been read before."""
        if path in self._included:
            return
        self._included.add(path)
        try:
            text = path.read_bytes().decode("latin-1")
        except OSError as error:
            raise self._error(f"cannot read {path}: {error.strerror}") from None
        self.read(text, path.name, folder)

    def read(self, text: str, name: str, folder: Path | None, kinds: str = "".join(_ENDS)) -> None:
        """Reads a text, which messages call `name`. folder: of files to include. kinds: allowed kinds of statements."""
        outside = self._scope
        for self._where, label, kind, body, proof in _statements(text, name):
            if kind not in kinds:
                raise self._error(f"${kind} is not allowed here")
            self._number = next(self._numbers)
            symbols = body.split()
            match kind:
                case "{":
                    self._scope = Scope(self._scope)
                case "}":
                    self._close()
                case "[":
                    self._include(symbols, folder)
                case "c":
                    self._constants(symbols)
                case "v":
                    self._variables(symbols)
                case "d":
                    self._distinct(symbols)
                case "f":
                    self._floating(self._new_label(label), symbols)
                case "e":
                    self._essential(self._new_label(label), symbols)
                case _:
                    self._assertion(self._new_label(label), symbols, proof)
        if self._scope is not outside:
            raise DatabaseError(f"{name}: a block ${{ is not closed by $}}")

    def _error(self, message: str) -> DatabaseError:
        return DatabaseError(f"{self._where}: {message}" if self._where else message)

    def _close(self) -> None:
        if self._scope.parent is None:
            raise self._error("$} closes no block")
        self._scope = self._scope.parent

    def _include(self, names: Sequence[str], folder: Path | None) -> None:
        if folder is None or self._scope.parent is not None or len(names) != 1:
            raise self._error("$[ must contain one file name, in a file and outside of every block")
        path = (folder / names[0]).resolve()
        if not path.is_relative_to(folder):
            raise self._error(f"{names[0]} is not in the folder of the database")
        self.include(path, folder)

    def _constants(self, symbols: Sequence[str]) -> None:
        if self._scope.parent is not None:
            raise self._error("constants must be declared outside of every block")
        for symbol in self._new_symbols(symbols):
            if symbol in self._database.types:
                raise self._error(f"{symbol} is a variable elsewhere and cannot be a constant")
            self._database.constants[symbol] = self._number

    def _variables(self, symbols: Sequence[str]) -> None:
        for symbol in self._new_symbols(symbols):
            if self._is_variable(symbol):
                raise self._error(f"{symbol} is already a variable")
            self._scope.variables[symbol] = self._number
            self._database.types.setdefault(symbol, "")

    def _new_symbols(self, symbols: Sequence[str]) -> Sequence[str]:
        if not symbols or len(set(symbols)) < len(symbols):
            raise self._error("a declaration needs one or more different symbols")
        for symbol in symbols:
            if symbol in self._database.constants:
                raise self._error(f"{symbol} is already a constant")
            if symbol in self._database.statements:
                raise self._error(f"{symbol} is already a label")
        return symbols

    def _distinct(self, symbols: Sequence[str]) -> None:
        if len(symbols) < 2 or len(set(symbols)) < len(symbols):
            raise self._error("$d needs two or more different variables")
        for symbol in symbols:
            if not self._is_variable(symbol):
                raise self._error(f"$d needs variables, and {symbol} is not a variable here")
        for pair in itertools.combinations(sorted(symbols), 2):
            self._scope.distinct.setdefault(pair, self._number)

    def _floating(self, label: str, symbols: Sequence[str]) -> None:
        if len(symbols) != 2 or not self._is_constant(symbols[0]) or not self._is_variable(symbols[1]):
            raise self._error("$f needs a constant and a variable")
        kind, variable = symbols
        if self._type_of(variable):
            raise self._error(f"{variable} already has a type")
        if self._database.types[variable] not in ("", kind):
            raise self._error(f"{variable} has the type {self._database.types[variable]} elsewhere")
        self._database.types[variable] = kind
        hypothesis = Hypothesis(label, self._number, self._scope, (f" {kind}", variable, ""), variable)
        self._scope.floating[variable] = self._database.statements[label] = hypothesis

    def _essential(self, label: str, symbols: Sequence[str]) -> None:
        if self._scope.parent is None:
            raise self._error("$e must be inside a block")
        hypothesis = Hypothesis(label, self._number, self._scope, self._template(symbols), "")
        self._scope.essential.append(hypothesis)
        self._database.statements[label] = hypothesis

    def _assertion(self, label: str, symbols: Sequence[str], proof: str | None) -> None:
        expression = self._template(symbols)
        hypotheses = [hypothesis for scope in self._scope.chain() for hypothesis in scope.essential]
        variables = {name for part in (expression, *(h.expression for h in hypotheses)) for name in part[1::2]}
        hypotheses += filter(None, map(self._type_of, variables))
        distinct = (pair for pair in self._scope.distinct_before(self._number) if variables.issuperset(pair))
        assertion = Assertion(
            label,
            self._number,
            self._scope,
            expression,
            tuple(sorted(hypotheses, key=lambda hypothesis: hypothesis.number)),
            tuple(sorted(distinct)),
            proof,
            self._where,
        )
        self._database.statements[label] = assertion
        self.assertions.append(assertion)

    def _template(self, symbols: Sequence[str]) -> Template:
        if not symbols or not self._is_constant(symbols[0]):
            raise self._error("an expression must begin with a constant")
        parts, run = [], ""
        for symbol in symbols:
            if self._is_constant(symbol):
                run += f" {symbol}"
            elif self._type_of(symbol):
                parts += [run, symbol]
                run = ""
            else:
                raise self._error(f"{symbol} is neither a constant nor a variable that has a type here")
        return (*parts, run)

    def _new_label(self, label: str) -> str:
        if not _LABEL.fullmatch(label):
            raise self._error(f"the label {label!r} must consist of letters, digits, '.', '-' and '_'")
        if label in self._database.statements:
            raise self._error(f"the label {label} is taken")
        if label in self._database.constants or label in self._database.types:
            raise self._error(f"{label} is a symbol and cannot be a label")
        return label

    def _is_constant(self, symbol: str) -> bool:
        return self._database.constants.get(symbol, _LAST) < self._number

    def _is_variable(self, symbol: str) -> bool:
        return any(scope.variables.get(symbol, _LAST) < self._number for scope in self._scope.chain())

    def _type_of(self, variable: str) -> Hypothesis | None:
        """The active $f statement of the variable, None if there is none."""
        for scope in self._scope.chain():
            hypothesis = scope.floating.get(variable)
            if hypothesis is not None and hypothesis.number < self._number:
                return hypothesis
        return None


def _statements(text: str, name: str) -> Iterator[tuple[str, str, str, str, str | None]]:
    """Yields (location, label, keyword, text after it, proof) for each statement.

    Every token with a $ is a keyword, so that only keywords need to be searched.
    """
    illegal = _ILLEGAL.search(text)
    if illegal:
        line = text.count("\n", 0, illegal.start()) + 1
        raise DatabaseError(f"{name}:{line}: the character {illegal[0]!r} is not allowed")
    text = _without_comments(text, name)
    keywords = _KEYWORD.finditer(text)
    end, counted, line = 0, 0, 1
    for keyword in keywords:
        line += text.count("\n", counted, keyword.start())
        counted = keyword.start()
        where = f"{name}:{line}"
        kind = keyword[1]
        if kind not in _ENDS or (not text[counted - 1 : counted].isspace() and counted):
            raise DatabaseError(f"{where}: ${kind} is not a keyword, or is misplaced")
        label = text[end:counted].strip()
        if bool(label) != (kind in "feap"):
            raise DatabaseError(f"{where}: ${kind} needs {'a' if kind in 'feap' else 'no'} label before it")
        end, parts = keyword.end(), []
        for expected in _ENDS[kind]:
            closing = next(keywords, None)
            if closing is None or closing[1] != expected or not text[closing.start() - 1].isspace():
                raise DatabaseError(f"{where}: ${kind} is not followed by ${expected}")
            parts.append(text[end : closing.start()])
            end = closing.end()
        yield where, label, kind, parts[0] if parts else "", parts[1] if kind == "p" else None
    if text[end:].strip():
        raise DatabaseError(f"{name}: text after the last statement")


def _without_comments(text: str, name: str) -> str:
    """The text with each comment replaced by its line ends, so that line numbers stay."""
    kept, end = [], 0
    while (start := text.find("$(", end)) >= 0:
        close = text.find("$)", start + 2)
        around = (
            text[max(start - 1, 0) : start]
            + text[start + 2 : start + 3]
            + text[close - 1]
            + text[close + 2 : close + 3]
        )
        if close < 0 or not around.isspace() or text.find("$(", start + 2, close) >= 0:
            line = text.count("\n", 0, start) + 1
            raise DatabaseError(
                f"{name}:{line}: a comment must be $( ... $) with space around both marks and no comment inside"
            )
        kept += [text[end:start], " ", "\n" * text.count("\n", start, close)]
        end = close + 2
    return "".join([*kept, text[end:]])
