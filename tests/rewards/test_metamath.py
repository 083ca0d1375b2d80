"""The Metamath proof checker, compared with hand-written proofs, the Metamath book and the metamath program."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.metamath.__main__ import main
from rewards.metamath.database import Database, DatabaseError, parse_database, read_database
from rewards.metamath.kernel import Limits, ProofError, ProofLimitError, UnreadableProofError, check

DATA = Path(__file__).resolve().parent / "data"
DEBIAN = Path("/usr/share/metamath/databases")  # apt install metamath metamath-databases
PROPOSITIONAL = read_database(DATA / "propositional.mm")
DISTINCT = read_database(DATA / "distinct.mm")

needs_metamath = pytest.mark.skipif(shutil.which("metamath") is None, reason="the metamath program is not installed")


def verdict(database: Database, label: str, proof: str, **limits: float) -> str:
    """The reason why the proof is rejected, "" if it is accepted."""
    try:
        check(database, database.theorem(label), proof, limits=Limits(**limits))  # type: ignore[arg-type]
    except (ProofError, UnreadableProofError, ProofLimitError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("label", "proof", "reason"),
    [
        # a1i: from |- ph follows |- ( ps -> ph ). Mandatory hypotheses: wph wps a1i.1, so A, B, C; then the labels.
        ("a1i", "wph wps wph wi a1i.1 wph wps ax-1 ax-mp", ""),
        ("a1i", "( wi ax-1 ax-mp ) ABADCABEF", ""),
        ("a1i", "wph  wps\twph wi\na1i.1 wph wps ax-1 ax-mp", ""),
        ("a1i", "wph wps wph wi a1i.1 wph wps ax-1", "4 expressions are left"),
        ("a1i", "wps wph wi", "proves wff ( ps -> ph ) where |- ( ps -> ph )"),
        ("a1i", "ax-mp", "step 1, ax-mp: 4 expressions are needed, 0 are on the stack"),
        ("a1i", "a1i.1 wph wi", "step 3, wi: wph needs a wff, not |- ph"),
        ("a1i", "wps wps wph wi a1i.1 wph wps ax-1 ax-mp", "step 9, ax-mp: min needs |- ps, not |- ph"),
        ("a1i", "wph wps wph wi a1i.1 wph wph ax-1 ax-mp", "maj needs |- ( ph -> ( ps -> ph ) ), not |- ( ph -> ("),
        ("a1i", "wph wps syl.1", "syl.1 is not active before a1i"),  # a hypothesis of another block
        ("a1i", "a1i", "a1i is not active before a1i"),  # itself
        ("a1i", "id", "id is not active before a1i"),  # what comes later
        ("id", "a1i.1", "a1i.1 is not active before id"),  # a hypothesis of a closed block
        ("a1i", "nonsense", "there is no statement labelled nonsense"),
        ("a1i", "wph wps ?", "the proof is incomplete"),
        ("a1i", "( wi ax-1 ax-mp ) ABADCABE?", "the proof is incomplete"),
        ("a1i", "", "the text is empty"),
        ("a1i", "( wi ax-1", "a compressed proof needs a ) after its labels"),
        ("a1i", "( wi ) AbC", "not a list of labels, and not a compressed proof: 'AbC'"),
        ("a1i", "We apply ax-1 to ph, then ax-mp.", "not a compressed proof: 'ph,'"),
        ("a1i", "$( sure $) wph", "not a compressed proof: '$('"),
        # compressed proofs. UA is 21, the book's appendix B
        ("a1i", "( wph ) D", "wph is a mandatory hypothesis"),
        ("a1i", "( wi ) ABF", "step 3: F refers to no statement or step so far"),
        ("a1i", "( wi ) ABUA", "step 3: UA refers to no statement or step so far"),
        ("a1i", "( wi ) ABDU", "after step 3: 'U' does not begin with a number"),
        ("a1i", "( wi ) ZAB", "after step 0: 'ZAB' does not begin with a number"),
        ("a1i", "( wi ) AZB", "step 1, wph: a Z may follow the number of an assertion only"),
        ("a1i", "( wi ) ABDZEZ", "step 4, E: a Z may follow the number of an assertion only"),
        ("a1i", "( wi ) A" + "U" * 100_000 + "A", "does not begin with a number"),
        ("twice", "( wi ax-1 ) AABZDC", ""),  # A wph, B wi, C ax-1; D the step tagged with the Z
        ("twice", "( wi ax-1 ) AABZZEC", ""),  # tagged twice: D and E
    ],
)
def test_a_proof_is_correct_or_the_message_says_what_is_wrong(label: str, proof: str, reason: str) -> None:
    said = verdict(PROPOSITIONAL, label, proof)
    assert reason in said if reason else said == ""


@pytest.mark.parametrize(
    ("source", "before", "proof", "reason"),
    [
        ("$d x y $. $d x z $. new $p |- ( y = z -> A. x y = z ) $= ? $.", None, "vy vz weq vx ax-5", ""),
        ("$d x y $. new $p |- ( y = z -> A. x y = z ) $= ? $.", None, "vy vz weq vx ax-5", "$d z x is not given"),
        ("$d x y $. new $p |- ( x = y -> A. x x = y ) $= ? $.", None, "vx vy weq vx ax-5", "both contain x"),
        # a dummy variable needs its $d too
        (
            "$d x y $. new $p |- ( y = z -> y = z ) $= ? $.",
            None,
            "( vx still ax-4 weq wal syl ) ABFZICGICABDICEH",
            "$d",
        ),
        (
            "$d x y z $. new $p |- ( y = z -> y = z ) $= ? $.",
            None,
            "( vx still ax-4 weq wal syl ) ABFZICGICABDICEH",
            "",
        ),
        # hypotheses and variables of its own; one can be redeclared where the database has closed its block
        ("$v a $. wa $f wff a $. h $e |- a $. new $p |- ( a -> a ) $= ? $.", None, "wa wa h a1i", ""),
        ("$v t $. vt3 $f setvar t $. new $p wff t = t $= ? $.", None, "vt3 vt3 weq", ""),
        ("new $p |- ( ph -> ph ) $= ? $.", "id", "wph id", "id is not active before new"),
        ("new $p |- ( ph -> ph ) $= ? $.", "pm2.21", "wph id", ""),
        ("new $p |- ( ph -> ph ) $= ? $.", "syl", "vx vx weq", "vx is not active before new"),
        ("new $p |- ( ph -> ph ) $= ? $.", "syl", "syl.1", "syl.1 is not active before new"),  # outside of syl's block
    ],
)
def test_a_new_theorem_can_use_only_earlier_statements(
    source: str, before: str | None, proof: str, reason: str
) -> None:
    database, theorem = DISTINCT.with_theorem(source, before=before)
    try:
        check(database, theorem, proof, limits=Limits())
        said = ""
    except ProofError as error:
        said = str(error)
    assert reason in said if reason else said == ""
    assert "new" not in DISTINCT.statements  # the database itself is as it was


@pytest.mark.parametrize(
    ("source", "before", "reason"),
    [
        ("new $a |- ph $.", None, "$a is not allowed here"),  # no new axioms
        ("$c new $.", None, "$c is not allowed here"),
        ("${ new $p |- ph $= ? $. $}", None, "${ is not allowed here"),
        ("h $e |- ph $.", None, "then one $p statement"),
        ("a $p |- ph $= ? $. b $p |- ph $= ? $.", None, "then one $p statement"),
        ("id $p |- ph $= ? $.", None, "the label id is taken"),
        ("new $p |- = $= ? $.", "syl", "= is neither a constant nor a variable"),  # declared only later
        ("new $p |- ph $= ? $.", "nothing", "no statement labelled 'nothing'"),
        ("new $p |- ph $= ? $.", None, ""),
    ],
)
def test_invalid_statements_to_prove(source: str, before: str | None, reason: str) -> None:
    if not reason:
        DISTINCT.with_theorem(source, before=before)
        return
    with pytest.raises(DatabaseError, match=re.escape(reason)):
        DISTINCT.with_theorem(source, before=before)


def test_labels_can_be_excluded() -> None:
    theorem = PROPOSITIONAL.theorem("twice")
    with pytest.raises(ProofError, match="id may not be used here"):
        check(PROPOSITIONAL, theorem, "wph id", limits=Limits(), without={"id"})


HEAD = "$c ( ) -> wff |- set $.\n$v P Q x y $.\nwp $f wff P $. wq $f wff Q $. vx $f set x $. vy $f set y $.\n"
# What the book forbids (chapter 4), and our message; * marks what the metamath program accepts.
BAD_SOURCES = {
    "$c wff $.": "wff is already a constant",
    "$c a a $.": "one or more different symbols",
    "$c P $.": "P is a variable elsewhere",
    "${ $v z $. $} $c z $.": "z is a variable elsewhere",
    "${ $c a $. $}": "constants must be declared outside of every block",
    "$v P $.": "P is already a variable",
    "$v wff $.": "wff is already a constant",
    "$v $.": "one or more different symbols",
    "$c wp $.": "wp is already a label",
    "$d x $.": "two or more different variables",
    "$d x x $.": "two or more different variables",
    "$d x wff $.": "wff is not a variable here",
    "${ $v z $. $} $d x z $.": "z is not a variable here",
    "* a $f wff P $.": "P already has a type",
    "$v z $. a $f P z $.": "$f needs a constant and a variable",
    "* ${ $v z $. a $f wff z $. $} ${ $v z $. b $f set z $. $}": "z has the type wff elsewhere",
    "* a $e |- P $.": "$e must be inside a block",
    "${ a $e P $. $}": "an expression must begin with a constant",
    "a $a $.": "an expression must begin with a constant",
    "$v z $. a $a |- z $.": "z is neither a constant nor a variable that has a type here",
    "* ${ $v z $. a $e |- z $. b $f set z $. $}": "z is neither a constant nor a variable that has a type here",
    "wp $a wff P $.": "the label wp is taken",
    "P $a wff P $.": "P is a symbol and cannot be a label",
    "a+b $a |- P $.": "must consist of letters",
    "a b $a |- P $.": "must consist of letters",
    "$a |- P $.": "$a needs a label before it",
    "a $c b $.": "$c needs no label before it",
    "a $a |- P": "$a is not followed by $.",
    "a $p |- P $.": "$p is not followed by $=",
    "a $a |- P$.": "$a is not followed by $.",
    "a $a |- P $. $.": "$. is not a keyword, or is misplaced",
    "$x $.": "$x is not a keyword",
    "${": "a block ${ is not closed",
    "$}": "$} closes no block",
    "foo": "text after the last statement",
    "$( foo": "a comment must be $( ... $)",
    "$( a $( b $) c $)": "a comment must be $( ... $)",
    "$(a $)": "a comment must be $( ... $)",
    "a $a |- \N{LATIN SMALL LETTER E WITH ACUTE} $.": "is not allowed",
    "* a $a |- P $. \v": "is not allowed",
}


@pytest.mark.parametrize("source", BAD_SOURCES)
def test_databases_that_the_book_forbids(source: str) -> None:
    with pytest.raises(DatabaseError, match=re.escape(BAD_SOURCES[source])) as raised:
        parse_database(HEAD + source.removeprefix("* "))
    assert "database:4" in str(raised.value) or "database:" in str(raised.value)


def test_files_are_included_once_and_from_their_folder_only(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "outer.mm").write_text("$c a $.")
    main_file = tmp_path / "inner" / "main.mm"
    (tmp_path / "inner" / "part.mm").write_text("$c b $. $[ main.mm $] $[ part.mm $]")
    main_file.write_text("$[ part.mm $] $[ part.mm $] $c c $.")
    assert set(read_database(main_file).constants) == {"b", "c"}
    main_file.write_text("$[ ../outer.mm $]")
    with pytest.raises(DatabaseError, match="not in the folder"):
        read_database(main_file)
    main_file.write_text("$c c $.\n$[ absent.mm $]")
    with pytest.raises(DatabaseError, match=r"main\.mm:2: cannot read .*absent\.mm: No such file"):
        read_database(main_file)
    with pytest.raises(DatabaseError, match="must contain one file name, in a file"):
        parse_database("$[ part.mm $]")


def test_proofs_that_grow_without_bound_exceed_the_limits() -> None:
    # Each four letters turn the last tagged wff w into ( w -> w ): 18 times, so 2^18 times ph.
    letters = "AABZ" + "".join(f"{c}{c}BZ" for c in "DEFGHIJKLMNOPQRST")
    assert "builds an expression" in verdict(PROPOSITIONAL, "id", f"( wi ax-1 ) {letters}", expression=1 << 16)
    start = time.monotonic()
    many = "( wi ax-1 ) AABZ" + "DDBZ" * 50_000
    assert "checking stopped" in verdict(PROPOSITIONAL, "id", many, deadline=time.monotonic() + 0.05)
    assert "checking stopped" in verdict(PROPOSITIONAL, "id", many, work=1 << 16)
    assert time.monotonic() - start < 2.0


@settings(max_examples=200, deadline=None)
@given(st.text(), st.lists(st.sampled_from(["wph", "wi", "ax-1", "ax-mp", "(", ")", "AABZ", "DC", "UZ", "?", "$d"])))
def test_any_text_is_accepted_or_rejected_without_another_error(text: str, tokens: list[str]) -> None:
    for proof in (text, " ".join(tokens), "( wi ax-1 ) " + "".join(tokens[:5])):
        verdict(PROPOSITIONAL, "id", proof, work=1 << 16)


@pytest.mark.parametrize("name", ["demo0", "big-unifier", "miu", "hol", "peano", "ql", "nf"])
def test_every_proof_of_debians_databases_is_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = DEBIAN / f"{name}.mm"
    if not path.exists():
        pytest.skip("Debian's metamath-databases is not installed")
    assert main(str(path)) == 0
    number = capsys.readouterr().out.split()[0]
    # Counted by the metamath program: `read` says how many are $p, `verify proof *` that all are right.
    counts = {"demo0": 1, "big-unifier": 2, "miu": 1, "hol": 138, "peano": 0, "ql": 1138, "nf": 6001}
    assert int(number) == counts[name]


def test_the_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "two.mm"
    path.write_text("$c a b $.\nax $a a $.\none $p a $= ax $.\ntwo $p b $= ax $.\n")
    assert (main(str(path)), main(str(path), "one")) == (1, 0)
    said = capsys.readouterr()
    assert said.err == "two.mm:4: two: proves a where b was to be proved\n"
    assert said.out == "1 of 2 proofs are right\n1 of 1 proofs are right\n"
    assert main(str(path), "three") == 2


def test_a_sample_of_the_proofs_of_set_mm_is_right() -> None:
    path = DEBIAN / "set.mm"
    if not path.exists():
        pytest.skip("Debian's metamath-databases is not installed")
    database = read_database(path)
    theorems = random.Random(0).sample(list(database.theorems()), 300)
    assert [said for theorem in theorems if (said := verdict(database, theorem.label, theorem.proof or ""))] == []


@needs_metamath
@pytest.mark.parametrize("source", BAD_SOURCES)
def test_the_metamath_program_refuses_the_same_databases(source: str, tmp_path: Path) -> None:
    (tmp_path / "bad.mm").write_text(HEAD + source.removeprefix("* ") + "\n", encoding="utf-8")
    said = metamath(tmp_path, "bad.mm")
    assert bool(re.search(r"^\?", said, re.MULTILINE)) == (not source.startswith("*"))


def metamath(folder: Path, name: str) -> str:
    commands = [f"read {name}", "set scroll continuous", "verify proof *", "quit"]
    done = subprocess.run(
        ["metamath", *commands], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    return done.stdout.decode("latin-1")


def refused_by_metamath(folder: Path, name: str) -> set[str]:
    """The labels of the theorems whose proofs the metamath program rejects or calls incomplete."""
    said = metamath(folder, name)
    assert "proofs were not checked" in said  # the database itself was read without an error
    refused = set(re.findall(r'^\?Error.*?label\s+"([^"]+)"', said, re.MULTILINE | re.DOTALL))
    incomplete = re.search(r"were not proved:\s*(.*?)\n(?:MM>|\n)", said, re.DOTALL)
    return refused | set(re.findall(r"[\w.-]+", incomplete[1]) if incomplete else [])


def mutated_source(source: str, draw: random.Random, labels: list[str]) -> str:
    """The source with one thing changed in every proof."""
    return re.sub(r"\$=(.*?)\$\.", lambda proof: f"$= {mutated(proof[1], draw, labels)} $.", source, flags=re.DOTALL)


def mutated(proof: str, draw: random.Random, labels: list[str]) -> str:
    """The proof with one thing changed."""
    compressed = "(" in proof
    head, _, letters = proof.rpartition(")")
    tokens = (head.replace("(", "") if compressed else proof).split()
    letters = "".join(letters.split()) if compressed else ""
    if letters and draw.random() < 0.7:
        at = draw.randrange(len(letters))
        letter = draw.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ?")
        letters = letters[:at] + draw.choice([letter, "", letters[at] + letter, letters[at] * 2]) + letters[at + 1 :]
    elif tokens:
        at, other = draw.randrange(len(tokens)), draw.randrange(len(tokens))
        change = draw.randrange(4)
        if change == 0:
            del tokens[at]
        elif change == 1:
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif change == 2:
            tokens[at] = draw.choice(labels)
        else:
            tokens.insert(at, tokens[other])
    return f"( {' '.join(tokens)} ) {letters}" if compressed else " ".join(tokens)


def without_comments(text: str) -> str:
    return re.sub(r"\$\(.*?\$\)", " ", text, flags=re.DOTALL)


@needs_metamath
@pytest.mark.parametrize(("name", "rounds"), [("propositional", 40), ("distinct", 40), ("hol", 4), ("ql", 3)])
def test_the_metamath_program_gives_the_same_verdicts_on_mutated_proofs(name: str, rounds: int, tmp_path: Path) -> None:
    path = DATA / f"{name}.mm" if (DATA / f"{name}.mm").exists() else DEBIAN / f"{name}.mm"
    if not path.exists():
        pytest.skip("Debian's metamath-databases is not installed")
    source = re.sub(r"\$\[ (\S+) \$\]", lambda match: (path.parent / match[1]).read_text(), path.read_text())
    source = without_comments(source)
    labels = list(parse_database(source).statements)
    num_refused = num_theorems = 0
    for seed in range(rounds):
        draw = random.Random(seed)
        text = mutated_source(source, draw, labels)
        if seed % 2:  # and one $d less
            restrictions = list(re.finditer(r"\$d [^$]*\$\.", text)) or [re.search(r"\Z", text)]
            gone = draw.choice(restrictions)
            assert gone
            text = text[: gone.start()] + text[gone.end() :]
        (tmp_path / "mutated.mm").write_text(text)
        database = parse_database(text)
        ours = {t.label for t in database.theorems() if verdict(database, t.label, t.proof or "")}
        assert ours == refused_by_metamath(tmp_path, "mutated.mm")
        num_refused += len(ours)
        num_theorems += len(list(database.theorems()))
    print(f"{num_theorems} mutated proofs, {num_refused} refused by both")
    assert 0.5 * num_theorems < num_refused < num_theorems  # some mutations leave a proof a proof
