r"""Rewrites equivalent notations (unicode, LaTeX variants, separators) to one spelling.

Every rule maps a notation to an equivalent one; nothing is evaluated or interpreted here.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from rewards.mathematics.foreign import SQUARED, in_latin
from rewards.mathematics.quantity import SCALE, read_unit
from rewards.mathematics.vocabulary import OPERATION_WORDS_BEFORE, SENTENCE_WORDS

_NUMBER_NAMES = "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
NUMBER_WORDS = {name: str(number) for number, name in enumerate(_NUMBER_NAMES.split("|"))}

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−﹣－"), "-")
_SYMBOLS = {
    "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "≤": r"\le ",
    "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ",
    "∈": r"\in ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm ",
    "∓": r"\mp ", "≈": r"\approx ", "⟨": r"\langle ", "⟩": r"\rangle ", "∖": r"\setminus ", "′": "'",
    "％": "%", "∫": r"\int ", "∑": r"\sum ", "∏": r"\prod ", "⁄": "/", "∕": "/", "˚": r"^\circ ", "。": ".",
    "≧": r"\ge ", "≦": r"\le ", "∗": "*", "∛": r"\sqrt[3] ", "∜": r"\sqrt[4] ", "∧": r"\text{and}", "∨": r"\text{or}",
    "∴": "", "⇒": r"\Rightarrow ", "∠": r"\angle ", "△": r"\triangle ",
}  # fmt: skip
_GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"]))  # fmt: skip
_SYMBOLS |= {symbol: rf"\text{{ {unit}}}" for symbol, unit in SQUARED.items()}
_TABLE = {**_DASHES, **{ord(k): v for k, v in _SYMBOLS.items()}, **{ord(k): f"\\{v} " for k, v in _GREEK.items()}}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]))")

_COMMANDS = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\leq": r"\le", r"\leqslant": r"\le",
    r"\geq": r"\ge", r"\geqslant": r"\ge", r"\neq": r"\ne", r"\lt": "<", r"\gt": ">", r"\dbinom": r"\binom",
    r"\tbinom": r"\binom", r"\ast": r"\cdot", r"\varnothing": r"\emptyset", r"\degree": r"^\circ", r"\land": r"\text{and}",
    r"\lor": r"\text{or}", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\lvert": "|",
    r"\rvert": "|", r"\vert": "|", r"\mid": "|", r"\backslash": r"\setminus", r"\imath": "i", r"\dots": r"\ldots",
    r"\cdots": r"\ldots", r"\mbox": r"\text", r"\textbf": r"\text", r"\textrm": r"\text", r"\textit": r"\text",
    r"\textsf": r"\text", r"\texttt": r"\text", r"\textnormal": r"\text", r"\mathrm": r"\text", r"\mathsf": r"\text",
    r"\emph": r"\text", r"\operatorname": r"\text", r"\colon": ":", r"\infin": r"\infty", r"\nicefrac": r"\frac", r"\sfrac": r"\frac", r"\dollar": r"\$",
    r"\Longrightarrow": r"\Rightarrow", r"\implies": r"\Rightarrow", r"\approxeq": r"\approx", r"\simeq": r"\approx",
    r"\thickapprox": r"\approx", r"\varphi": r"\phi", r"\varepsilon": r"\epsilon", r"\bigcup": r"\cup", r"\cr": r"\\",
    r"\wedge": r"\text{and}", r"\vee": r"\text{or}", r"\pounds": "£", r"\euro": "€", r"\textdollar": r"\$", r"\textdegree": r"^\circ",
    r"\tg": r"\tan", r"\ctg": r"\cot", r"\dotsc": r"\ldots", r"\dotsb": r"\ldots",
}  # fmt: skip
_STYLES = (
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr displaystyle textstyle limits nolimits mathbf boldsymbol"
    " bf rm mathit mathnormal ensuremath bm it underline tiny small normalsize large Large LARGE huge Huge"
)
_DROPPED = frozenset("\\" + name for name in _STYLES.split())
_SPACES = frozenset([r"\,", r"\;", r"\:", r"\ ", r"\quad", r"\qquad", r"\>", r"\enspace", r"\thinspace", r"\space"])
_MATHS_DELIMITERS = frozenset([r"\(", r"\)", r"\[", r"\]"])
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|[^A-Za-z])")
# Between groups of three digits a thin space, a braced comma or a negative space is always a separator.
_TEX_SEPARATOR = re.compile(r"(?<=\d)(?:\s*(?:\\[,;:! ]|\{ ?, ?\}|\\text\{,\}|\{\\,\}|,\\!|~))+\s*(?=\d{3}(?!\d))")
_SPACED_NUMBER = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])")
_PLAIN_MIXED = re.compile(r"(?<![\d.,}])(\d+) (\d+)/(\d+)(?![\d.])")
_COMMA_NUMBER = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_RENAMED = {"infinity": "infty", "Infinity": "infty"}
_FUNCTIONS = "arcsin|arccos|arctan|sin|cos|tan|cot|csc|ln|log|exp"
_TEXT_NAME = re.compile(rf"\\text\{{ ?({_FUNCTIONS}(?= ?\}} ?[\w({{^\\])|[Ii]nfinity) ?\}}")
# Matches outside \text only, and function names only before an argument: tan may be a colour.
_NAME_WITHOUT_BACKSLASH = re.compile(
    rf"\\text\{{[^{{}}]*\}}|(?<![A-Za-z\\])(pi(?![A-Za-z])|infinity(?![A-Za-z])|sqrt(?![A-Za-z])|(?:{_FUNCTIONS})(?= ?[\d(^_\\]| [A-Za-z]\b))"
)
_ROMAN_CONSTANT = re.compile(r"\\(?:mathrm|operatorname)\s*\{\s*([ei])\s*\}")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[A-Za-z]*\}")
_UNIT_FRACTION = re.compile(
    r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}((?:\^\d|\^\{\d\})?)\s*\}"
)
_GROUPED_SIGN = re.compile(r"(?<![A-Za-z])\{ ?(\\%|[:=<>+-]) ?\}")
# The conjunction between $1$ and $2$, when the outer dollar signs stand outside the box.
_MATHS_MODE = re.compile(r"\$ ?((?:\\text\{ ?)?(?:,|,? ?(?:and|or))(?: ?\})?) ?\$")
_TEXT_NUMBER = re.compile(r"\\text\{ ?([+-]?(?:\\?\$)?\d[\d.,/]*)( [^{}]*)\}")  # \text{5 cm}
_LETTERS = re.compile(r"\\text\{ ?([A-Z](?: ?, ?(?:and )?[A-Z]| and [A-Z])+) ?\}")  # \text{A, B}: choices
_THEREFORE = re.compile(r"(?:\\(?:therefore|Rightarrow) ?)+")
_UNION_LETTER = re.compile(r"(?<=[)\]]) ?U ?(?=[(\[])")
# "The answer is 5", and other words that introduce a number ("area: 5") unless _takes_back finds that they change it.
_PREFIX = re.compile(
    r"(?:\\text\{ ?)?(?:(?:so |thus,? )?(?:the )?(?:final )?answer ?(?:is|:) ?:?|"
    r"([a-z][a-z', ]*? (?:is|are|equals)(?: equal to)? ?:?|(?<=[{ ])[a-z][a-z' ]{2,}:)(?= ?\}? ?(?:[\d$(\[{.+-]|\\(?!text)))) ?(\}?)",
    re.IGNORECASE,
)
_ROW_SKIP = re.compile(r"(?<=\\\\)\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")
_INVISIBLE = re.compile(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|[^{}])")
_TEXT_SPACE = re.compile(r"\\text\s+\{")
# Pairs of dollar signs set apart from their surroundings, as in $5$; $10$ and 20 $cm^2$, or as in 3$\pi$ and 30$\%$.
# ($5, $10 are prices.)
_MATHS_PAIR = re.compile(
    r"(?:(?<=[ ,;(])|^|(?<=[A-Za-z\d)])(?=\$ ?(?:\^|\\[A-Za-z%])))\$ ?((?:\\.|[^$\\])+?) ?\$(?=[ ,;).]|$)"
)
_POWER_OF_UNIT = re.compile(r"(?<=\d) ([A-Za-z]+)\$ ?(\^[^$]+)\$")  # 5 m$^3$, where m is text
_ASCII_RELATION = re.compile(r"<=|>=|=<|(?<![\d)}])!=|(?<= )!=")
_RELATIONS = {"<=": r"\le ", "=<": r"\le ", ">=": r"\ge ", "!=": r"\ne "}
_PRIMES = re.compile(r"\^ ?(?:\{ ?((?:\\prime ?)+)\}|(\\prime))(?![A-Za-z])")
_SUBSCRIPT_WORD = re.compile(
    r"_ ?(?:\{ ?\\text ?\{ ?([A-Za-z]+) ?\} ?\}|\{ ?\\(max|min|sup|inf) ?\}|\\text ?\{ ?([A-Za-z]+) ?\}|\\(max|min|sup|inf)(?![A-Za-z]))"
)
_BRACKETED = re.compile(r"(?<=[\d}%]) ?\( ?([^()]{1,80}?) ?\)(?= ?(?:[;,]|$))")
_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")
_SIGN = re.compile(r"\\?[%$]|[€£¥₹¢]|\^ ?\{? ?\\circ ?\}?(?: ?[CF])?")
_HALF_DAY = re.compile(r"([ap])\.? ?m\.?", re.IGNORECASE)
_NUMBER_IN_WORDS = re.compile(r"(?<![\^-])\b\d+\b[- ]?")
_OPERATION_ON = re.compile(
    r"\bof ?:?$|\bof (?:the |my )?(?:final )?(?:answer|result|solution)\b|^(?:the )?(?:square|cube)$", re.IGNORECASE
)
_MAX_WRAPPERS = 8  # rounds of unwrapping: bounds the time that a thousand braces can take
_WRAPPERS = (("**", "**"), ("`", "`"), ("$$", "$$"), ("$", "$"), ("{", "}"))


@lru_cache(maxsize=4096)  # the completions of a group share their reference
def normalise(text: str, *, commas_group_digits: bool = True) -> str:
    """`text` in the spelling that all later stages read. commas_group_digits: 81,256 is one number, not a list."""
    text = _plain_unicode(text)
    text = _TEX_SEPARATOR.sub("", text)
    text = _unwrap(_COLOUR.sub("", _ROW_SKIP.sub("", _INVISIBLE.sub("", text)))).replace("**", "^")
    text = _COMMAND.sub(_command, _ROMAN_CONSTANT.sub(r"{\1}", text))
    text = " ".join(_TEXT_SPACE.sub(r"\\text{", text).replace(r"\!", "").split())
    text = _ASCII_RELATION.sub(lambda m: _RELATIONS[m[0]], text.replace("&=", "="))
    if "$" in text:
        text = _POWER_OF_UNIT.sub(r"\\text{ \1\2}", text)
        text = _MATHS_PAIR.sub(_inside_pair, _MATHS_MODE.sub(r" \1 ", text))
    text = _unwrap(text)
    text = _PRIMES.sub(lambda m: "'" * m[0].count("prime"), text)
    text = _SUBSCRIPT_WORD.sub(lambda m: f"_{{{next(filter(None, m.groups()))}}}", text)
    text = (r"\sim " + text[1:] if text.startswith("~") else text).replace("~", " ")  # about, or a space in TeX
    text = _THEREFORE.sub("", text, count=1) if text.startswith("\\") else text.removeprefix("=").lstrip()
    prefix = _PREFIX.match(text)
    if prefix and prefix.end() < len(text) and not _takes_back(prefix[1] or ""):
        text = ("" if prefix[2] or not text.startswith("\\text{") else "\\text{") + text[prefix.end() :]
    text = _TEXT_NUMBER.sub(r"\1\\text{\2}", text)
    letters = _LETTERS.fullmatch(text)
    text = _NAME_WITHOUT_BACKSLASH.sub(_command_for, _TEXT_NAME.sub(_command_for, letters[1] if letters else text))
    text = _UNIT_FRACTION.sub(r"\\text{\1/\2\3}", _GROUPED_SIGN.sub(r"\1", text))
    text = _PLAIN_MIXED.sub(r"\1\\frac{\2}{\3}", _UNION_LETTER.sub(r"\\cup ", text))
    text = _SPACED_NUMBER.sub(lambda m: m[0].replace(" ", ""), text)
    if commas_group_digits:
        text = _COMMA_NUMBER.sub(_without_commas, text)
    return in_latin(_BRACKETED.sub(_beside_number, text)).strip()


def _takes_back(words: str) -> bool:
    """Whether the words before a number change it instead of labelling it: "not", "twice", "the cube of the answer"."""
    found = set(re.findall("[a-z]+", words.lower())) - {"is", "are", "to"}
    return not found.isdisjoint(SENTENCE_WORDS | OPERATION_WORDS_BEFORE) or bool(
        _OPERATION_ON.search(words.rstrip(" :"))
    )


def _inside_pair(match: re.Match[str]) -> str:
    """The content of a pair of dollar signs. A known unit after a number, as in 7 $m^2$, becomes \\text{} so that it is
    not read as a variable."""
    unit = read_unit(match[1]) if match.string[: match.start()].rstrip()[-1:].isdigit() else None
    return rf"\text{{{match[1]}}}" if unit is not None and unit.known else match[1]


def _beside_number(match: re.Match[str]) -> str:
    r"""Rewrites a bracketed unit after a number: 9 (apples) to 9 apples. (x) and (ab) stay, being factors; other words
    become \text{ (?)}, which makes the answer unreadable."""
    words = _TEXT.sub(r"\1", match[1]).strip()
    half_day = _HALF_DAY.fullmatch(words)
    if half_day or _SIGN.fullmatch(words):
        return rf"\text{{ {half_day[1].lower()}m}}" if half_day else words
    if "\\" in words or words.startswith("base "):
        return match[0]
    longest = max(map(len, re.findall("[A-Za-z]+", words)), default=0)
    plain = _NUMBER_IN_WORDS.sub("", words).replace(" and ", " ").strip() if longest >= 4 else words
    unit, is_set_apart = read_unit(plain), match[0].startswith(" ")
    if unit is not None and unit.known:
        is_unit = len(words) > 1 or is_set_apart
    else:
        is_unit = unit is not None and (longest >= 4 or (is_set_apart and (longest == 3 or words.isupper())))
    if is_unit or SCALE.match(plain):
        return rf"\text{{ {plain}}}"
    return r"\text{ (?)}" if longest >= 4 else match[0]


def text_key(text: str) -> str:
    """A key that is equal for normalised texts that differ only in spacing, braces around one character or \\text."""
    key = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text)
    key = re.sub(r"\{(\w)\}", r"\1", key)
    return re.sub(r"(?<!\d) | (?!\d)", "", " ".join(key.split()))


def _plain_unicode(text: str) -> str:
    if text.isascii():
        return text
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text).replace("√", r"\sqrt ")
    text = _SUPERSCRIPT_RUN.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = _VULGAR.sub(_vulgar, text).translate(_TABLE)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")  # zero-width marks, soft hyphens
    return unicodedata.normalize("NFKC", text).translate(_TABLE)


def _vulgar(match: re.Match[str]) -> str:
    numerator, _, denominator = unicodedata.normalize("NFKC", match[0]).partition("⁄")
    return rf"\frac{{{numerator}}}{{{denominator}}}"


def _command_for(match: re.Match[str]) -> str:
    """The LaTeX command for a function or constant name written without a backslash; any other match unchanged."""
    name = match[1]
    return f"\\{_RENAMED.get(name, name)} " if name else match[0]


def _without_commas(match: re.Match[str]) -> str:
    """Removes the commas of 1,234, except inside brackets, where a comma separates elements."""
    before = match.string[: match.start()]
    depth = len(re.findall(r"[(\[]|\\\{", before)) - len(re.findall(r"[)\]]|\\\}", before))
    return match[0] if depth else match[0].replace(",", "")


def _command(match: re.Match[str]) -> str:
    command = match[0]
    if command in _DROPPED or command in _SPACES:
        return " "
    if command in _MATHS_DELIMITERS:
        return "$"
    # A letter may follow a renamed command, as in \lt x.
    return _COMMANDS[command] + " " if command in _COMMANDS and command[1:].isalpha() else command


def _unwrap(text: str) -> str:
    text = text.strip()
    for _ in range(_MAX_WRAPPERS):
        before = text
        if text.endswith((r"\,", r"\;", r"\:")):
            text = text[:-2]
        elif not text.endswith("..."):  # an ellipsis is not punctuation
            text = text.rstrip(".,;: \t\n")
        if text.endswith("\\") and not text.endswith("\\\\"):
            text = text[:-1]
        for opening, closing in _WRAPPERS:
            if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening + closing):
                inner = text[len(opening) : -len(closing)]
                if _is_balanced(inner) if opening == "{" else "$" not in inner.replace(r"\$", ""):
                    text = inner.strip()
        if text == before:
            break
    return text


def _is_balanced(text: str) -> bool:
    """Whether all braces in `text` are paired, so that {1}/{2} is not unwrapped to 1}/{2."""
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return not text.endswith("\\")
