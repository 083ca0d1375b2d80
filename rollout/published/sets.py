"""The table of published test sets: where each is, which columns it has, and how often each of its problems is sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.errors import UserError
from rollout.published.rows import ReadRow, gpqa, human_eval, if_eval, live_code_bench, math_problem, mbpp, mbpp_plus

FEW_PROBLEMS = 32  # samples of each problem of a competition with 30 or 40, whose accuracy of one sample would be noise


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """A test set as it is published.

    hub, config, split: its name on the hub; files: those to read there, where it is no table but a folder of JSON lines.
    columns: those that `read` reads. samples: completions of each problem, k of avg@k, unless an option says otherwise.
    licence: as its publisher names it, "none stated" where it does not.
    """

    hub: str
    config: str | None = None
    split: str = "test"
    files: tuple[str, ...] = ()
    columns: tuple[str, ...]
    read: ReadRow
    samples: int = 1
    licence: str

    @property
    def source(self) -> str:
        """Its name on the hub as --dataset takes one."""
        return f"{self.hub}:{self.config or ''}/{self.split}"


def _math(question: str, answer: str, **published: Any) -> PublishedSet:
    return PublishedSet(columns=(question, answer), read=math_problem(question, answer), **published)


def _human_eval(hub: str, licence: str) -> PublishedSet:
    columns = ("prompt", "test", "entry_point")
    return PublishedSet(hub=hub, columns=columns, read=human_eval, licence=licence)


_AIME = {"split": "train", "samples": FEW_PROBLEMS}
_ARENA = {**_AIME, "licence": "CC-BY-NC-SA-4.0"}
SETS: dict[str, PublishedSet] = {
    "gsm8k": _math("question", "answer", hub="openai/gsm8k", config="main", licence="MIT"),
    "hendrycks-math": _math(
        "problem", "solution", hub="DigitalLearningGmbH/MATH-lighteval", config="default", licence="MIT"
    ),
    "math-500": _math("problem", "answer", hub="HuggingFaceH4/MATH-500", licence="MIT (of MATH)"),
    "aime24": _math("problem", "answer", hub="HuggingFaceH4/aime_2024", licence="none stated", **_AIME),
    "aime25": _math("problem", "answer", hub="MathArena/aime_2025", **_ARENA),
    "aime26": _math("problem", "answer", hub="MathArena/aime_2026", **_ARENA),
    "amc23": _math("question", "answer", hub="math-ai/amc23", samples=FEW_PROBLEMS, licence="none stated"),
    "olympiadbench": _math(
        "question",
        "final_answer",
        hub="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        split="train",
        licence="Apache-2.0",
    ),
    "minerva": _math("question", "answer", hub="math-ai/minervamath", licence="none stated"),
    "humaneval": _human_eval("openai/openai_humaneval", "MIT"),
    "humaneval+": _human_eval("evalplus/humanevalplus", "Apache-2.0"),
    "mbpp": PublishedSet(
        hub="google-research-datasets/mbpp",
        config="full",
        columns=("text", "test_list", "test_setup_code"),
        read=mbpp,
        licence="CC-BY-4.0",
    ),
    "mbpp+": PublishedSet(
        hub="evalplus/mbppplus",
        columns=("prompt", "test_imports", "test_list", "test"),
        read=mbpp_plus,
        licence="Apache-2.0",
    ),
    "livecodebench": PublishedSet(
        hub="livecodebench/code_generation_lite",
        split="train",
        files=("test.jsonl", *(f"test{n}.jsonl" for n in range(2, 7))),
        columns=("question_content", "starter_code", "public_test_cases", "private_test_cases", "metadata"),
        read=live_code_bench,
        licence="CC",
    ),
    "gpqa-diamond": PublishedSet(
        hub="Idavidrein/gpqa",
        config="gpqa_diamond",
        split="train",
        columns=("Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))),
        read=gpqa,
        samples=4,
        licence="CC-BY-4.0",
    ),
    "ifeval": PublishedSet(
        hub="google/IFEval",
        split="train",
        columns=("prompt", "instruction_id_list", "kwargs"),
        read=if_eval,
        licence="Apache-2.0",
    ),
}
_MATH = ("gsm8k", "math-500", "aime24", "aime25", "aime26", "amc23", "olympiadbench", "minerva")
_CODE = ("humaneval", "humaneval+", "mbpp", "mbpp+", "livecodebench")
GROUPS = {"math": _MATH, "code": _CODE, "all": (*_MATH, *_CODE, "gpqa-diamond", "ifeval")}


def named_sets(names: Sequence[str]) -> list[str]:
    """The sets that are named, alone or by a group, each once. Raises UserError for none and for an unknown name."""
    unknown = [name for name in names if name not in SETS and name not in GROUPS]
    if unknown or not names:
        raise UserError(
            f"suite is {' '.join(names)!r}: it must name sets, {', '.join(SETS)}, or a group of them, {', '.join(GROUPS)}"
        )
    return list(dict.fromkeys(one for name in names for one in GROUPS.get(name, (name,))))
