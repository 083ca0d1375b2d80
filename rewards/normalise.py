r"""One spelling for each way of writing the same mathematics: unicode, LaTeX variants, separators.

Nothing is evaluated and no meaning is decided here; every rule maps a spelling to an equivalent one.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_NUMBER_NAMES = "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen"
NUMBER_WORDS = {name: str(number) for number, name in enumerate(_NUMBER_NAMES.split("|"))}

_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−﹣－"), "-")
_SYMBOLS = {
    "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "≤": r"\le ",
    "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ",
    "∈": r"\in ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm ",
    "∓": r"\mp ", "≈": r"\approx ", "⟨": r"\langle ", "⟩": r"\rangle ", "∖": r"\setminus ", "′": "'",
    "％": "%", "∫": r"\int ", "∑": r"\sum ", "∏": r"\prod ",
}  # fmt: skip
_GREEK = dict(zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ", ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega"]))  # fmt: skip
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
    r"\thickapprox": r"\approx", r"\varphi": r"\phi", r"\varepsilon": r"\epsilon", r"\ge": r"\ge",
}  # fmt: skip
_DROPPED = frozenset(
    [
        r"\left",
        r"\right",
        r"\big",
        r"\Big",
        r"\bigg",
        r"\Bigg",
        r"\bigl",
        r"\bigr",
        r"\Bigl",
        r"\Bigr",
        r"\biggl",
        r"\biggr",
        r"\displaystyle",
        r"\textstyle",
        r"\limits",
        r"\nolimits",
        r"\mathbf",
        r"\boldsymbol",
        r"\bf",
        r"\rm",
        r"\mathit",
        r"\mathnormal",
        r"\ensuremath",
        r"\bm",
        r"\it",
    ]
)
_SPACES = frozenset([r"\,", r"\;", r"\:", r"\ ", r"\quad", r"\qquad", r"\>", r"\enspace", r"\thinspace", r"\space"])
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|[^A-Za-z])")
# A thin space, a braced comma or a negative space between groups of three digits is only ever a separator.
_TEX_SEPARATOR = re.compile(r"(?<=\d)(?:\s*(?:\\[,;:! ]|\{,\}|\{\\,\}|,\\!|~))+\s*(?=\d{3}(?!\d))")
_SPACED_NUMBER = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])")
_OVER = re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}")
_PLAIN_MIXED = re.compile(r"(?<![\d.,}])(\d+) (\d+)/(\d+)(?![\d.])")
_COMMA_NUMBER = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_WORD_COMMANDS = re.compile(r"(?<![A-Za-z\\{])(pi|infinity|sqrt)(?![A-Za-z])")
_PREFIX = re.compile(
    r"(?:\\text\{)?\s*(?:so\s+|thus,?\s+)?(?:the\s+)?(?:final\s+)?answer\s*(?:is|:)\s*:?\s*(\}?)", re.IGNORECASE
)
_ROW_SKIP = re.compile(r"(?<=\\\\)\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")
_INVISIBLE = re.compile(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|[^{}])")
_TEXT_SPACE = re.compile(r"\\text\s+\{")
_WRAPPERS = (("**", "**"), ("`", "`"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


@lru_cache(maxsize=4096)  # a group's completions share their reference
def normalise(text: str, *, commas_group_digits: bool = True) -> str:
    """`text` in the spelling that every later stage reads. 81,256 is a number, or a list if commas do not group."""
    text = _plain_unicode(text)
    text = _TEX_SEPARATOR.sub("", text)
    text = _unwrap(_ROW_SKIP.sub("", _INVISIBLE.sub("", text))).replace("**", "^")
    text = _TEXT_SPACE.sub(r"\\text{", _COMMAND.sub(_command, text))
    text = _unwrap(" ".join(text.replace("~", " ").replace(r"\!", "").split()))
    prefix = _PREFIX.match(text)
    if prefix and prefix.end() < len(text):
        text = ("" if prefix[1] or not text.startswith("\\text{") else "\\text{") + text[prefix.end() :]
    text = _WORD_COMMANDS.sub(lambda m: {"pi": r"\pi ", "infinity": r"\infty ", "sqrt": r"\sqrt"}[m[1]], text)
    text = _OVER.sub(r"\\frac{\1}{\2}", text)
    text = _PLAIN_MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _SPACED_NUMBER.sub(lambda m: m[0].replace(" ", ""), text)
    if commas_group_digits and not re.search(r"[(\[]|\\\{", text):  # inside brackets a comma separates elements
        text = _COMMA_NUMBER.sub(lambda m: m[0].replace(",", ""), text)
    return text.strip()


def text_key(text: str) -> str:
    """Two normalised texts with one key are the same text: spacing, braces around one character and \\text do not count."""
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


def _command(match: re.Match[str]) -> str:
    command = match[0]
    if command in _DROPPED:
        return " "
    if command in _SPACES:
        return " "
    # A letter may follow a renamed command, as in \lt x.
    return _COMMANDS[command] + " " if command in _COMMANDS and command[1:].isalpha() else command


def _unwrap(text: str) -> str:
    text = text.strip()
    while True:
        before = text
        if text.endswith((r"\,", r"\;", r"\:")):
            text = text[:-2]
        elif not text.endswith("..."):  # an ellipsis is not punctuation
            text = text.rstrip(".,;: \t\n")
        if text.endswith("\\") and not text.endswith("\\\\"):
            text = text[:-1]
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            if (
                text.startswith(opening)
                and text.endswith(closing)
                and len(text) >= len(opening + closing)
                and "$" not in inner
            ):
                text = inner.strip()
        if text == before:
            return text
