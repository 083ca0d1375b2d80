"""The rewards of a run, as `--reward` names them: SOURCE or SOURCE=WEIGHT."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import chain, count
from pathlib import Path

from rewards.answer_format import format_rule
from rewards.errors import UserError
from rewards.functions.source import NOTEBOOK, Source

ENTRY_POINTS = "plumbline.rewards"  # group in which installed packages name their reward functions
ENVIRONMENT = "environment"  # the reward that the get_reward of a row's environment gives
BUILT_IN = (
    "math",
    "program",
    "program-answer",
    "proof",
    "puzzle",
    "instructions",
    "reasoning-gym",
)  # the verifiers of rewards.verifiers


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """One reward of a weighted sum.

    source: how the user named it. name: of its part in scores and of its curve. function: None for a verifier or a format
    rule of this package, which `source` then names.
    """

    source: str
    name: str
    weight: float
    function: Source | None


def parse_rewards(texts: Sequence[str]) -> tuple[RewardSpec, ...]:
    """The rewards that `--reward` names, with distinct names. Raises UserError."""
    specs: list[RewardSpec] = []
    for text in texts:
        source, weight = _split_weight(text)
        if source in (spec.source for spec in specs):
            raise UserError(f"reward has {source!r} twice; name it once, with the weight that it has in sum")
        specs.append(_spec(source, weight, {spec.name for spec in specs}))
    if specs and all(spec.weight == 0 for spec in specs):
        raise UserError(f"reward is {' '.join(texts)!r}: all weights are 0; give one of the rewards another weight")
    return tuple(specs)


def need_references(texts: Sequence[str]) -> bool:
    """Whether problems need a reference answer: for a verifier they do, for functions and format rules they do not."""
    return not texts or any(_split_weight(text)[0] in BUILT_IN for text in texts)


def _split_weight(text: str) -> tuple[str, float]:
    source, equals, written = text.rpartition("=")
    if not equals or ":" in written:  # the = is in the path of the file
        return text, 1.0
    try:
        weight = float(written)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(f"reward is {text!r}: the weight {written!r} is not a number; write for instance {source}=0.5")
    return source, weight


def _spec(source: str, weight: float, taken: set[str]) -> RewardSpec:
    if source in (*BUILT_IN, ENVIRONMENT) or _is_format_rule(source):
        function, short = None, source
    elif ":" in source:
        function = Source.parse(source)
        stem = Path(function.module).stem if function.module.endswith(".py") else function.module.rpartition(".")[2]
        is_named_by_module = function.name == "reward" and function.module != NOTEBOOK
        short = stem if is_named_by_module else function.name
    else:
        installed = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}
        if source not in installed:
            raise UserError(
                f"reward is {source!r}: it must be file.py:function, module:function, a verifier ({', '.join(BUILT_IN)}), a "
                f"format rule (boxed, think-answer, no-repetition, words:N), or {ENVIRONMENT} for the get_reward of environments"
                + "".join(f", or {name} of an installed package" for name in sorted(installed))
            )
        function, short = Source.parse(installed[source]), source
    possible = chain((short, source.replace("/", ".").replace(":", ".")), (f"{short}-{n}" for n in count(2)))
    name = next(name for name in possible if name not in taken)
    return RewardSpec(source=source, name=name, weight=weight, function=function)


def _is_format_rule(source: str) -> bool:
    if re.fullmatch(r"[^:]+:\D.*", source):
        return False  # a function; what is no format rule otherwise gets the message about all kinds
    try:
        format_rule(source)
    except UserError:
        return False
    return True
