"""The tables of docs/results.md and docs/scale.md, out of the result files: no figure there is typed by hand.

    python -m benchmarks.page

Each table stands between two marks with the name of its result file. A test holds that the pages say what the files say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import deepseekmath_figures, grpo_vs_ppo, mining, prover, r1, small_student
from benchmarks.everything import COMMANDS, PROFILES
from benchmarks.machine import RESULTS
from benchmarks.profile import time_table

Result = dict[str, Any]
PRINTED = tuple(Path("docs") / name for name in ("results.md", "scale.md", "pipelines.md", "mining.md"))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def spread(found: Result, median: str = "median", least: str = "min", most: str = "max") -> str:
    return f"{found[median]:.2f} ({found[least]:.2f} to {found[most]:.2f})"


def load(name: str) -> Result:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def made() -> str:
    """Where and when each file was made, and by what."""
    files = {name: load(name) for name in COMMANDS}
    return table(
        ["result", "command", "commit", "date", "machine"],
        [
            (
                f"[{name}](../benchmarks/results/{name}.json)",
                f"`{' '.join(['python', '-m', *COMMANDS[name]])}`",
                found["commit"],
                found.get("date", "-"),
                f"{found['hardware']['cpu']}, {found['hardware']['cores']} cores, GPU: {found['hardware']['gpu']}",
            )
            for name, found in files.items()
        ],
    )


def learning(found: Result) -> str:
    return table(
        ["seed", "held-out accuracy, base", "after the last step", "gain, points", "steps", "whole command, s"],
        [
            (
                run["seed"],
                percent(run["accuracy_before"]),
                percent(run["accuracy_after"]),
                f"{100 * (run['accuracy_after'] - run['accuracy_before']):.1f}",
                run["steps"],
                "-" if run["whole_command_seconds"] is None else f"{run['whole_command_seconds']:.0f}",
            )
            for run in found["runs"]
        ],
    )


PLAIN_WAYS = {
    "sandbox L3": "sandbox, every layer (L3)",
    "sandbox L2": "sandbox without namespaces (L2)",
    "subprocess.run -I -S": "`subprocess.run`, a bare interpreter (`-I -S`)",
    "multiprocessing.Process": "`multiprocessing.Process` each",
    "subprocess.run": "`subprocess.run`",
}
MATH_WAYS = {"MathVerifier": "`MathVerifier`, through the pool", "math_verify": "math-verify called directly"}


def verifiers(found: Result) -> str:
    programs, math = found["programs_per_second_per_core"], found["math_answers_per_core"]
    rounds = found["spread"]
    of_programs = [
        (title, f"{programs[name]:.0f} ({min(rounds[name]):.0f} to {max(rounds[name]):.0f})")
        for name, title in PLAIN_WAYS.items()
    ]
    of_math = [
        (title, f"{way['per_second']:,.0f}", *(f"{way[key]:.2f} ms" for key in ("p50_ms", "p99_ms", "worst_ms")))
        for title, way in ((title, math[name]) for name, title in MATH_WAYS.items())
    ]
    return "\n\n".join(
        [
            table(["short programs, one test each", "a second"], of_programs),
            table(["math answers", "a second", "p50", "p99", "worst"], of_math),
        ]
    )


def sampler(found: Result) -> str:
    return table(
        ["", "ours, tokens a second", "generate", "ratio of each round's pair"],
        [
            (
                name,
                f"{of['ours_tokens_per_second']:,.0f}",
                f"{of['generate_tokens_per_second']:,.0f}",
                spread(of, "ratio_median", "ratio_min", "ratio_max"),
            )
            for name, of in found["settings"].items()
        ],
    )


def turns(found: Result) -> str:
    return table(
        ["calls in a completion", "tokens a second", "of the rate without calls", "prefilled tokens"],
        [
            (
                name,
                f"{of['tokens_per_second']:,.0f}",
                spread(of, "ratio_median", "ratio_min", "ratio_max"),
                f"{of['prefilled_tokens']:,}",
            )
            for name, of in found["found"].items()
        ],
    )


def limits(found: Result) -> str:
    of = found["medians"]
    phases = {"sampling, prefill and texts included": of["sampling"], "update": of["update, as run"]}
    return "\n\n".join(
        [
            table(
                ["phase", "time of the limit / time taken"],
                [(name, percent(share, 0)) for name, share in phases.items()],
            ),
            f"Each prompt once instead of for each completion: {of['sharing, gain']:.2f} times faster, by "
            f"{of['sharing, of operations']:.2f} times fewer operations.",
        ]
    )


def beside_trl(found: Result) -> str:
    shapes = {name: of for name, of in found["shapes"].items() if "configuration" in of}
    return table(
        ["shape", "TRL, s", "ours, s", "step", "sampling", "training", "by hand", "update's memory, MB: ours of TRL's"],
        [
            (
                f"{name}: {of['configuration']['what']}",
                f"{of['trl']['step_seconds']['median']:.2f}",
                f"{of['ours']['step_seconds']['median']:.2f}",
                spread(of["speed"]["total"]),
                f"{of['speed']['sample']['median']:.2f}",
                f"{of['speed']['train']['median']:.2f}",
                f"{of['speed_plain']['total']['median']:.2f}" if "speed_plain" in of else "",
                f"{of['update_peak_bytes']['ours'] / 1e6:.0f} of {of['update_peak_bytes']['trl'] / 1e6:.0f}",
            )
            for name, of in shapes.items()
        ],
    )


def against_time(found: Result) -> str:
    return table(
        ["seed", "accuracy that both reach", "after, s: ours", "TRL 1.16", "times sooner"],
        [
            (
                run["seed"],
                percent(run["accuracy_both_reach"]),
                f"{run['seconds_to_it']['ours']:.0f}",
                f"{run['seconds_to_it']['trl']:.0f}",
                f"{run['seconds_to_it']['trl'] / run['seconds_to_it']['ours']:.2f}",
            )
            for run in found["runs"]
        ],
    )


def memory_of_steps(found: Result) -> str:
    return table(
        ["model", "", "method", "kept and gradients", "peak of the update", "the same, dry run", "peak of sampling"],
        [
            (
                row["model"],
                row["trained"],
                row["method"],
                *("-" if row[key] is None else f"{row[key]:.1f}" for key in ("static", "update", "update_dry_run")),
                f"{row['sampling']:.1f}",
            )
            for row in found["rows"]
        ],
    )


TIMED = {
    "ppo": "PPO shared, values out of the training forward",
    "ppo, whitened": "PPO shared, whitened: a forward beforehand",
    "ppo-separate": "PPO separate, values in the pass that trains it",
}


def plans(found: Result) -> str:
    def reach(key: str) -> str:
        return "{:.3f} to {:.3f}".format(*(f(row[key] for row in found["memory"]) for f in (min, max)))

    ratios = found["time_over_grpo"]
    return "\n\n".join(
        [
            table(
                ["memory of an update, over what was measured", "least to most"],
                [("formula", reach("formula_over_measured")), ("dry run", reach("dry_run_over_measured"))],
            ),
            table(
                ["update time over GRPO's, 3 M", "operations", "measured"],
                [
                    (title, f"{ratios[name]['predicted']:.2f}", f"{ratios[name]['measured']:.2f}")
                    for name, title in TIMED.items()
                ],
            ),
        ]
    )


def distillation(found: Result) -> str:
    def samples(of: Result) -> str:
        spread = of["spread"]
        if not spread["num"]:
            return "not reached"
        reached = "" if spread["num"] == len(of["samples"]) else f", {spread['num']} of {len(of['samples'])} seeds"
        return f"{spread['mean']:,.0f} ({spread['min']:,} to {spread['max']:,}{reached})"

    def fewer(of: Result) -> str:
        return f"{of['mean']:.1f} ({of['min']:.1f} to {of['max']:.1f})" if of["num"] else "-"

    return table(
        [
            "",
            "problems x completions of a step",
            "samples to 80 % of the teacher's gain",
            "times fewer than GRPO",
            "samples to the teacher's accuracy less a point",
            "times fewer than GRPO",
            "accuracy at the end, %",
        ],
        [
            (
                arm["title"],
                f"{arm['problems']} x {arm['group_size']}",
                *(
                    cell
                    for level in ("gain", "teacher")
                    for cell in (samples(arm[level]), fewer(arm[level]["times_fewer"]))
                ),
                "{:.1f} ({:.1f} to {:.1f})".format(*(100 * arm["final_accuracy"][k] for k in ("mean", "min", "max"))),
            )
            for arm in found["arms"].values()
        ],
    )


def soak(found: Result) -> str:
    return table(
        ["", "second quarter", "last quarter", "most"], [(name, *of.values()) for name, of in found["course"].items()]
    )


def sharded(found: Result) -> str:
    sizes = ("kept, GiB", "peak, formula, GiB", "peak, dry run, GiB")
    received = list(found["rows"][0]["received, GiB"])
    return table(
        ["model", "GPUs", "micro-batches", *(name.removesuffix(", GiB") for name in sizes), *received],
        [
            (
                row["model"],
                row["gpus"],
                row["micro-batches"],
                *(f"{row[name]:,.1f}" for name in sizes),
                *(f"{x:,.1f}" for x in row["received, GiB"].values()),
            )
            for row in found["rows"]
        ],
    )


TABLES: dict[str, Callable[[Result], str]] = {
    "grpo_vs_ppo": lambda found: (
        f"{grpo_vs_ppo.table(found['methods'])}\n\n{grpo_vs_ppo.differences(found['methods'])}"
    ),
    "deepseekmath_figures": lambda found: deepseekmath_figures.findings(found["figure 5"], found["figure 7"]),
    "distillation": distillation,
    "r1": lambda found: "\n\n".join(r1.accuracies(found)),
    "prover": lambda found: "\n\n".join(prover.tables(found)),
    "small_student": lambda found: "\n\n".join(small_student.tables(found)),
    "mining": mining.table,
    "default_run": learning,
    "code_run": learning,
    "vllm_run": learning,
    "ahead_run": learning,
    "sentence_run": learning,
    "verifier_throughput": verifiers,
    "rollout_throughput": sampler,
    "turns": turns,
    "percent_of_limit_b_float32": limits,
    **dict.fromkeys(PROFILES, time_table),
    "vs_trl": beside_trl,
    "vs_trl_learning": against_time,
    "vram_table": memory_of_steps,
    "plan_check": plans,
    "soak": soak,
    "scale_table": sharded,
}


def filled(page: str) -> str:
    """The page with the table of each of its marks."""

    def between(marks: re.Match[str]) -> str:
        begin, name, end = marks.groups()
        return f"{begin}{made() if name == 'made' else TABLES[name](load(name))}\n{end}"

    return re.sub(r"(<!-- (\w+): begin -->\n).*?(<!-- \2: end -->)", between, page, flags=re.DOTALL)


def main() -> None:
    for path in PRINTED:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
