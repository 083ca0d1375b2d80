"""Scores that papers report of the sets, to be shown beside one's own. Each was measured with its paper's prompts and settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """A score in percent. how: of which measure and settings, as the source says."""

    model: str
    percent: float
    how: str
    source: str


_DEEPSEEK_MATH = ("chain of thought", "DeepSeekMath, arXiv 2402.03300, table 5")
_QWEN_MATH = ("greedy", "Qwen2.5-Math, arXiv 2409.12122")
_R1 = ("pass@1, temperature 0.6", "DeepSeek-R1, arXiv 2501.12948")
_RECENT = "pass@1, problems of August 2024 to January 2025"
_CODEX = ("pass@1", "Codex, arXiv 2107.03374")
_EVALPLUS = ("greedy, May 2023", "EvalPlus, arXiv 2305.01210")


def _score(model: str, percent: float, of: tuple[str, str]) -> PublishedScore:
    how, source = of
    return PublishedScore(model=model, percent=percent, how=how, source=source)


SCORES: dict[str, tuple[PublishedScore, ...]] = {
    "gsm8k": (
        _score("DeepSeekMath-RL 7B", 88.2, _DEEPSEEK_MATH),
        _score("Qwen2.5-Math-7B-Instruct", 95.2, _QWEN_MATH),
    ),
    "hendrycks-math": (
        _score("DeepSeekMath-RL 7B", 51.7, _DEEPSEEK_MATH),
        _score("Qwen2.5-Math-7B-Instruct", 83.6, _QWEN_MATH),
    ),
    "math-500": (
        _score("R1-Distill-Qwen-7B", 92.8, _R1),
        _score("R1-Distill-Qwen-1.5B", 83.9, _R1),
    ),
    "aime24": (
        _score("R1-Distill-Qwen-7B", 55.5, _R1),
        _score("R1-Distill-Qwen-1.5B", 28.9, _R1),
    ),
    "humaneval": (_score("Codex 12B", 28.8, _CODEX), _score("GPT-4", 88.4, _EVALPLUS)),
    "humaneval+": (_score("GPT-4", 76.2, _EVALPLUS),),
    "livecodebench": (_score("R1-Distill-Qwen-7B", 37.6, (_RECENT, _R1[1])),),
    "gpqa-diamond": (
        _score("R1-Distill-Qwen-7B", 49.1, _R1),
        _score("R1-Distill-Qwen-1.5B", 33.8, _R1),
    ),
    "ifeval": (_score("DeepSeek-R1", 83.3, ("prompt-level strict", _R1[1])),),
}
