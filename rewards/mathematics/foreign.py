"""Translates units and conjunctions in other scripts to Latin ones: 5厘米 to 5 cm, 3或4 to 3 or 4."""

from __future__ import annotations

import re

_UNITS = {
    **{"平方": "square", "立方": "cubic", "每": "per"},
    **{"千米": "km", "公里": "km", "分米": "dm", "厘米": "cm", "公分": "cm", "毫米": "mm", "微米": "um", "米": "m", "英寸": "inch"},
    **{"千克": "kg", "公斤": "kg", "毫克": "mg", "克": "g", "毫升": "ml", "升": "l", "千瓦": "kilowatt"},
    **{"秒": "s", "分钟": "min", "小时": "h", "时": "h", "天": "day", "星期": "week", "周": "week", "个月": "month", "年": "year"},
    **{"美元": "dollar", "美分": "cent", "欧元": "euro", "英镑": "gbp", "日元": "yen", "円": "yen", "度": "degree"},
    **{"км": "km", "см": "cm", "дм": "dm", "мм": "mm", "м": "m", "кг": "kg", "мг": "mg", "г": "g", "мл": "ml", "л": "l"},
    **{"с": "s", "сек": "s", "мин": "min", "ч": "h"},
}  # fmt: skip
_UNIT = re.compile("|".join(sorted((u for u in _UNITS if u > "一"), key=len, reverse=True)))  # Chinese has no spaces
_WORD = re.compile(r"[^\W\d_]+")
# Characters for about, or, not, more than, half and tenths: outside of a known unit they are not part of a unit.
_NOT_A_UNIT = re.compile("[或和与约不非无没未错几半多余至最超成折打比]|左右|以上|以下|以内")
_OR = re.compile(r"(?<=[\d)}])\s*,?\s*(?:或者?|和|与|及|以及)\s*(?=[A-Za-z\d(\\$+-])")
_ANSWER_IS = re.compile(r"(?:所以|因此|故)?(?:最终|最后)?(?:的)?答案?(?:是|为)?\s*:?\s*(?=[\dA-Za-z(\\$+-])")
_AFTER_NUMBER = re.compile(
    r"(.*[\d})])\s*(?:\\text\s*\{|\()?\s*((?:[^\W\d_]|\.)(?:[^\W\d_]|[ ./-])*(?:\^\{?-?\d\}?)?)\s*[})]?"
)
_MICRO = re.compile(r"(?<=[\d}]) ?\\mu ?(?:\\text ?\{ ?)?([mgslLFAV])(?: ?\})?$")
_OHM = re.compile(r"(?<=[\d}]) ?(?:\\text ?\{ ?)?([kMm]?)(?: ?\})?\\Omega$")
SQUARED = {"㎟": "mm^2", "㎠": "cm^2", "㎡": "m^2", "㎢": "km^2", "㎣": "mm^3", "㎤": "cm^3", "㎥": "m^3", "㎦": "km^3"}


def in_latin(text: str) -> str:
    r"""The normalised `text` with its final unit as \text{} in Latin letters and its conjunctions as commas."""
    text = _OHM.sub(r"\\text{ \1ohm}", _MICRO.sub(r"\\text{ u\1}", text))
    if text.isascii():
        return text
    answer_is = _ANSWER_IS.match(text)
    text = _OR.sub(", ", text[answer_is.end() :] if answer_is else text).replace("、", ",")
    match = _AFTER_NUMBER.fullmatch(text)
    if match is None or match[2].isascii() or _NOT_A_UNIT.search(_UNIT.sub("", match[2])):
        return text
    words = _UNIT.sub(lambda unit: f" {_UNITS[unit[0]]} ", match[2])
    words = _WORD.sub(lambda word: _UNITS.get(word[0].lower(), word[0]), words)
    return rf"{match[1]}\text{{ {' '.join(words.split())}}}"
