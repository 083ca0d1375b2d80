from __future__ import annotations

import io

from rich.console import Console

from rl.view.progress import Progress, duration, final_table, step_line, visible

ROW = {"step": 3, "reward/mean": 0.5, "eval/accuracy": 0.25, "kl/reference": None, "entropy": 0.75, "time/step": 2.0}


def _run(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, force_interactive=terminal, width=120)
    with Progress(5, console) as progress:
        progress.start("warming up")
        progress.step({"step": 0, "eval/accuracy": 0.125})
        for step in (1, 2):
            progress.step({"step": step, "reward/mean": 0.5, "time/step": 2.0})
        progress.message("saved [bold]\x1b[31m")
    return out.getvalue()


def test_a_log_file_gets_one_plain_line_a_step() -> None:
    assert _run(terminal=False).splitlines() == [
        "warming up",
        "step 0/5  held-out 12.5%",
        "step 1/5  reward 0.500  2.0 s  8s left",  # 4 steps of 2 s
        "step 2/5  reward 0.500  2.0 s  6s left",
        r"saved [bold]\x1b[31m",
    ]


def test_a_terminal_keeps_evaluations_and_redraws_the_rest() -> None:
    shown = _run(terminal=True)
    lines = [line.rpartition("\x1b[2K")[2] for line in shown.splitlines()]
    assert [line for line in lines if line.startswith("step")] == ["step 0/5  held-out 12.5%"]  # the rest: after a bar
    assert "step 2/5  reward 0.500  held-out 12.5%  2.0 s  6s left" in shown  # the last accuracy stays in view
    assert r"saved [bold]\x1b[31m" in shown


def test_what_was_not_measured_is_left_out_of_the_line() -> None:
    assert step_line(ROW, 5, [1.0, 3.0]) == "step 3/5  reward 0.500  held-out 25.0%  entropy 0.75  2.0 s  4s left"


def test_time_left_goes_by_the_last_steps() -> None:
    """An early slow phase does not count: 100 s a step once, 1 s a step in the last 20; two steps are left."""
    assert step_line({"step": 3}, 5, [100.0, *[1.0] * 20]).endswith("2s left")


def test_duration_has_two_units_at_most() -> None:
    assert [duration(s) for s in (0.4, 59.4, 59.6, 723, 3599.6, 11100)] == [
        "0s", "59s", "1m 00s", "12m 03s", "1h 00m", "3h 05m"]  # fmt: skip


def test_control_characters_are_spelled_out() -> None:
    """Escape sequences, turned reading direction, half a surrogate pair; newline and tab are text, as are accents."""
    assert visible("a\x1b[2J\x00\u202eb\ud800\r\n\té") == "a\\x1b[2J\\x00\\u202eb\\ud800\n\té"


def test_final_table_tells_before_after_and_where_the_time_went() -> None:
    rows: list[dict[str, float | None]] = [{"step": 0, "eval/accuracy": 0.1}]
    rows += [{"step": i, "reward/mean": i / 10, "time/step": 4.0, "time/sample": 3.0} for i in (1, 2)]
    rows[-1]["eval/accuracy"] = 0.35
    out = io.StringIO()
    final_table(rows, Console(file=out, width=100))
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert ["held-out", "accuracy,", "%", "10.0", "35.0", "+25.0"] in lines
    assert ["reward", "0.100", "0.200", "+0.100"] in lines
    assert not any("KL" in line for line in lines)  # never measured
    assert "8s: sample 75%, other 25%." in out.getvalue()
    assert "UNSAFE" not in out.getvalue()
    final_table([{**row, "sandbox/level": 1.0} for row in rows], Console(file=out, width=100))
    assert "UNSAFE: programs ran at isolation level 1, below 2" in out.getvalue()
