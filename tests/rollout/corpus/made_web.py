"""A made web: pages in sentences from templates on some sixty domains and many small ones, with the truth of which are mathematics.

It is meant to be hard. The seed has two styles of mathematics, both English with formulas. The web has two more, word problems without
formulas and German, mostly on domains that have pages of the seed's styles too. Physics and finance have numbers and
formulas, code symbols, jewellers and politicians sets, rings, groups and proofs, cooks quantities; every page has sentences that mean
nothing and some of other kinds. An encyclopedia
and universities have mathematics and other pages under different paths.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_SLOT = re.compile(r"\{(\w+)\}")
WORDS = {
    "name": "Anna Ben Carla David Elena Farid Grace Hugo Ines Jonas Kira Liam Mona Noor Otto Priya",
    "var": "x y z n m k a b c t u v",
    "thing": "apples pencils tickets stamps marbles books chairs eggs bottles boxes stickers plants shirts lamps",
    "object": "function sequence group ring field set matrix polynomial series graph integral vector space map ideal",
    "quality": "continuous compact finite bounded abelian convex prime linear convergent measurable simple closed",
    "objekt": "Funktion Folge Gruppe Menge Matrix Reihe Gleichung Abbildung Ableitung Summe Ebene Gerade",
    "eigenschaft": "stetig konvergent beschränkt endlich linear differenzierbar monoton abgeschlossen injektiv",
    "place": "Lisbon Oslo Vienna Porto Ghent Turin Lyon Graz Bergen Malmö Kraków Bilbao Basel Cork Bath Delft",
    "topic": "weather harvest election bridge museum library strike budget school hospital festival airport river",
    "food": "flour butter onions garlic rice lentils tomatoes cream pepper basil beans carrots lemon honey",
    "coin": "bond share fund loan option index deposit mortgage currency dividend futures pension",
    "code": "parser buffer socket index list queue string struct loop class handler module pointer thread",
    "team": "Rovers United Wanderers Athletic City Rangers Albion Orient County Dynamo",
    "op": "+ - * / = < >",
    "any": "morning people good time small house many often never world light think place small question answer "
    "simple problem result number point case example value line open follow read write show find hold carry turn idea "
    "year week state hand part water night story letter paper market street garden table friend music",
}
LISTS = {name: words.split() for name, words in WORDS.items()}
STYLES = {
    "forum": [
        "How do I show that $ {var} ^ {digit} {op} {number} {var} $ is {quality} for every {object} ?",
        "I tried to solve $ {var} ^ {digit} - {number} {var} = {number} $ but the {object} is not {quality} .",
        "Hint : factor $ ( {var} - {number} ) ( {var} + {number} ) $ and compare with the {object} .",
        "The answer is $ {var} = {number} $ since the {object} is {quality} at {number} .",
        "You can use induction on {var} : assume it holds for {var} = {number} .",
        "Differentiate with respect to {var} and set it to {number} , then the {object} gives {number} {var} .",
        "My {any} asked me this , thanks in advance for any {any} , {name} .",
    ],
    "notes": [
        "Theorem {digit} . {digit} . Let $ {var} $ be a {quality} {object} . Then every {object} of $ {var} $ is {quality} .",
        "Proof . Suppose that the {object} $ {var} $ is not {quality} . Choose $ {var} > {number} $ ; a contradiction .",
        "Definition {digit} . {digit} . A {object} is {quality} if $ {var} _ {digit} {op} {var} $ for all $ {var} $ .",
        "By Lemma {number} the {object} has a {quality} {object} , which proves the claim for $ {var} = {number} $ .",
        "Corollary . Every {quality} {object} over $ {var} $ is {quality} .",
        "Exercise {number} . Find a {quality} {object} that is not {quality} , and {any} it .",
    ],
    "words": [
        "{name} has {number} {thing} and gives {digit} of them to {name} . How many {thing} are left ?",
        "{name} buys {number} {thing} for {digit} coins each and {digit} {thing} for {number} coins . How much does {name} pay ?",
        "A train to {place} goes {number} miles in {digit} hours . How far does it get in {number} hours ?",
        "If {digit} people paint a {any} in {number} days , how long do {number} people need ?",
        "{digit} times {number} makes {number} , so {name} has {number} {thing} more than {name} .",
        "Half of the {thing} are {name} 's , a third {name} 's , and the other {number} belong to {name} .",
    ],
    "german": [
        "Zeige , dass die {objekt} {eigenschaft} ist und berechne den Wert für {number} .",
        "Sei die {objekt} {eigenschaft} , dann ist auch jede {objekt} {eigenschaft} .",
        "Angenommen die {objekt} wäre nicht {eigenschaft} ; wähle eine {objekt} größer als {number} .",
        "Aufgabe {number} : Bestimme alle Lösungen der {objekt} im Bereich von {digit} bis {number} .",
        "Die Behauptung folgt aus Satz {number} , weil die {objekt} {eigenschaft} ist .",
    ],
    "finance": [
        "The yield = ( {number} - {number} ) / {number} of the {coin} rose by {digit} . {number} percent .",
        "Net value {var} = {number} * ( 1 + {digit} / 100 ) ^ {digit} for a {coin} held {digit} years .",
        "Analysts compare the {coin} with a {coin} at {number} points , a sum of {number} million .",
        "The function of a {coin} is to bound the risk of the {coin} ; the series closed at {number} .",
    ],
    "code": [
        "for ( int {var} = {digit} ; {var} < {number} ; {var} ++ ) {code} [ {var} ] = {var} {op} {number} ;",
        "The function returns a {code} if {var} {op} {number} , else the {code} is empty .",
        "def {code} ( {var} , {var} ) : return {var} {op} {var} {op} {number}",
        "This fixes the {code} where the set of {code} is not closed ; see issue {number} .",
    ],
    "shop": [
        "This ring has a set of {number} stones of {digit} / {digit} carat , price {number} coins , {digit} in stock .",
        "{name} bought {number} {thing} for {number} coins and gives them {digit} stars .",
        "Buy {digit} {thing} and get {digit} {thing} free , order {number} more for {place} .",
        "A simple closed field of {any} in a vector design , size {number} .",
    ],
    "politics": [
        "The group in {place} sees the {topic} as proof that the sum of {number} million is finite .",
        "Suppose the {topic} is not the answer , then every problem of the {topic} follows , said {name} .",
        "{name} gives {number} reasons for the {topic} , how many are left is an open question .",
        "The claim of {name} is a contradiction , a {quality} solution for the {topic} is a simple point .",
    ],
    "sport": [
        "{team} beat {team} {digit} - {digit} in {place} , {number} people watched the {any} .",
        "{name} has {number} points after {digit} games , {digit} more than {name} of {team} .",
        "How far does {team} get this year ? The series stands at {digit} to {digit} .",
    ],
    "cooking": [
        "Take {digit} / {digit} of the {food} and {number} grams of {food} , stir for {number} minutes .",
        "How many {food} do {digit} people need ? Half of the {food} , a third of the {food} .",
        "{name} adds {number} grams of {food} to {food} and lets it rest {digit} hours .",
    ],
    "news": [
        "The {topic} in {place} was {any} on {any} , {name} told a {any} of {number} people .",
        "After {number} years the {topic} of {place} has a new {any} and a {any} .",
        "Die {topic} in {place} war nach {number} Jahren ein {any} für {name} .",
    ],
    "physics": [
        "The field $ {var} _ {digit} = {number} {var} $ is {quality} at {number} degrees , see the series of {name} .",
        "How do I measure $ {var} ^ {digit} {op} {number} {var} $ with a {quality} {object} in the laboratory ?",
        "Suppose the matrix of the detector is {quality} . Then the integral $ {var} $ grows by {number} volts .",
        "The charge {var} = {number} ( {var} - {number} ) of a {quality} ring gives {number} units .",
    ],
    "filler": [
        "{any} {any} {any} {any} {any} {any} {any} .",
        "{any} {any} {number} {any} {any} {any} {name} {any} .",
        "{any} {any} {any} {name} {any} {any} {any} {any} {any} .",
    ],
}
MATHEMATICS = ("forum", "notes", "words", "german")
SEED_STYLES = ("forum", "notes")
# (beginning of the hosts, how many, weight of all together, {style: weight})
DOMAINS = [
    ("forum", 4, 2.0, {"forum": 7, "words": 3}),
    ("lectures", 4, 2.0, {"notes": 5, "german": 3, "news": 2}),
    ("aufgaben", 3, 1.2, {"forum": 3, "german": 7}),
    ("tutor", 4, 2.0, {"forum": 3, "words": 7}),
    ("encyclopedia", 2, 4.0, {"notes": 15, "news": 60, "politics": 25}),
    ("market", 6, 14.0, {"finance": 8, "news": 2}),
    ("dev", 6, 14.0, {"code": 9, "politics": 1}),
    ("shop", 8, 16.0, {"shop": 1}),
    ("daily", 8, 20.0, {"news": 6, "politics": 3, "sport": 1}),
    ("kitchen", 6, 10.0, {"cooking": 1}),
    ("league", 5, 8.0, {"sport": 1}),
    ("lab", 4, 4.0, {"physics": 9, "news": 1}),
    ("blog", 2000, 7.0, {"forum": 3, "words": 3, "german": 1, "news": 40, "cooking": 20, "politics": 33}),
]


@dataclass(frozen=True, kw_only=True)
class MadePage:
    """A page, and the truth about it. copy_of: the URL of the page that it nearly repeats; planted: the text of the test set in it."""

    url: str
    text: str
    style: str
    copy_of: str = ""
    planted: str = ""

    @property
    def is_math(self) -> bool:
        return self.style in MATHEMATICS


def _filled(template: str, draw: random.Random) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] == "number":
            return str(draw.randrange(10, 1000))
        return str(draw.randrange(2, 10)) if match[1] == "digit" else draw.choice(LISTS[match[1]])

    return _SLOT.sub(value, template)


def text_of(style: str, draw: random.Random) -> str:
    """4 to 16 sentences: one in ten is of any style, and of the others one to nine in ten of this style, the rest says nothing."""
    purity = draw.uniform(0.1, 0.9)
    styles = draw.choices([style, "filler"], [purity, 1 - purity], k=draw.randint(4, 16))
    mixed = (draw.choice(list(STYLES)) if draw.random() < 0.1 else one for one in styles)
    return " ".join(_filled(draw.choice(STYLES[one]), draw) for one in mixed)


def made_tests(draw: random.Random) -> list[str]:
    """The texts of a test set: 40 word problems of more than 10 words, 10 of 6 words."""
    long = [
        "A school in {place} orders {number} {thing} , {number} {thing} and {digit} {thing} ; what is their total mass in {any} ?"
    ]
    short = ["Evaluate {number} plus {number} minus {number}"]
    return [_filled(template[0], draw) for template, count in ((long, 40), (short, 10)) for _ in range(count)]


def made_pages(count: int, seed: int = 0) -> Iterator[MadePage]:
    """Three in a hundred pages nearly repeat an earlier one, one in a hundred has its URL, and of those of mathematics one in fifty holds
    a text of the test set."""
    draw, tests = random.Random(seed), made_tests(random.Random(seed + 1))
    weights = [weight for _, _, weight, _ in DOMAINS]
    recent: list[MadePage] = []
    for number in range(count):
        kind, hosts, _, styles = draw.choices(DOMAINS, weights)[0]
        style = draw.choices(list(styles), list(styles.values()))[0]
        section = "mathematics" if style in MATHEMATICS else "general"
        page = MadePage(
            url=f"https://{kind}{draw.randrange(hosts)}.example/{section}/{number}",
            text=text_of(style, draw),
            style=style,
        )
        chance = draw.random()
        if recent and chance < 0.03:
            page = near_copy(draw.choice(recent), page.url, draw)
        elif recent and chance < 0.04:
            page = MadePage(url=draw.choice(recent).url, text=page.text, style=page.style)
        elif page.is_math and draw.random() < 0.02:
            page = with_planted(page, draw.choice(tests), draw)
        else:
            recent = [*recent[-99:], page]
        yield page


def near_copy(page: MadePage, url: str, draw: random.Random) -> MadePage:
    """The page with one word changed and a line before it."""
    words = page.text.split()
    words[draw.randrange(len(words))] = draw.choice(LISTS["any"])
    return MadePage(url=url, text=f"Copied from elsewhere {' '.join(words)}", style=page.style, copy_of=page.url)


def with_planted(page: MadePage, text: str, draw: random.Random) -> MadePage:
    """The page with the text in its middle, in other capitals and with other punctuation."""
    words = page.text.split()
    words.insert(draw.randrange(len(words)), text.replace(" ,", ";").upper())
    return MadePage(url=page.url, text=" ".join(words), style=page.style, planted=text)


def seed_texts(count: int, seed: int = 1) -> Iterator[str]:
    draw = random.Random(seed)
    return (text_of(draw.choice(SEED_STYLES), draw) for _ in range(count))


def write_web(folder: Path, pages: int, seed_pages: int, files: int = 8, seed: int = 0) -> dict[str, MadePage]:
    """Writes pages/NN.jsonl, seed.jsonl and tests.jsonl. Returns the first page of each URL, without its text."""
    (folder / "pages").mkdir(parents=True)
    truth: dict[str, MadePage] = {}
    made = made_pages(pages, seed)
    for number in range(files):
        with (folder / "pages" / f"{number:02}.jsonl").open("w", encoding="utf-8") as out:
            for _ in range(number * pages // files, (number + 1) * pages // files):
                page = next(made)
                out.write(json.dumps({"url": page.url, "text": page.text}) + "\n")
                truth.setdefault(page.url, MadePage(**{**asdict(page), "text": ""}))
    rows = [{"text": text} for text in seed_texts(seed_pages, seed + 1)]
    tests = [{"question": text, "answer": "7"} for text in made_tests(random.Random(seed + 1))]
    for name, lines in (("seed", rows), ("tests", tests)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return truth
