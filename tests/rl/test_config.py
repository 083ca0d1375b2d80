"""Bad input ends with one message that names the field, the value and what to do, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tyro

from rewards.combine import CombinedVerifier
from rewards.errors import UserError
from rewards.math_policy import MathPolicy
from rewards.score import Outcome
from rewards.verifiers import VerifierOptions, Verifiers
from rl.processes.runtime import Runtime
from rl.run.build_learner import build_learner
from rl.run.loop import verifier_options
from rl.settings.config import RunConfig
from rl.settings.declare import ByModel, declared
from rl.settings.resolve import resolve
from tests.rl.models import make


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, r"group_size is 1: it must be at least 2"),
        ({"group_size": 8, "algorithm": "sft"}, r"group_size is 8: sft has one worked solution of each problem"),
        ({"eval_samples": -1}, r"eval_samples is -1: it must be at least 0"),
        ({"algorithm": "grop"}, r"algorithm is 'grop': it must be one of .*grpo, "),
        ({"temperature": 0.0}, r"temperature is 0.0: it must be more than 0"),
        ({"temperature": float("nan")}, r"temperature is nan"),
        ({"learning_rate": -1.0}, r"learning_rate is -1.0: it must be more than 0"),
        ({"top_p": 0.9}, r"top_p is 0.9: training needs 1"),
        ({"token_budget": 0}, r"token_budget is 0: it must be at least 1"),
        ({"seed": 2**64}, r"seed is 18446744073709551616: it must be a number of 64 bits"),
        ({"stop_strings": ("</answer>", "")}, r"stop_strings is .*: it must be strings that are not empty"),
        ({"max_prompt_tokens": 0}, r"max_prompt_tokens is 0: it must be at least 1"),
        ({"max_unjudged": 2.0}, r"max_unjudged is 2.0: it must be in \[0, 1\]"),
        ({"grading": ("commas=true",)}, r"grading is 'commas=true': it must be option=value with an option among"),
        ({"trackers": ("wandb", "x")}, r"trackers is .*among tensorboard"),
    ],
)
def test_a_value_out_of_range_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunConfig(**options)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": 0.9}, r"lam is 0.9: grpo has no critic; leave it out, or choose .*ppo-separate"),
        ({"value_clip": None}, r"value_clip is None: grpo has no critic"),
        ({"algorithm": "dapo", "value_trunk_scale": 0.1}, r"value_trunk_scale is 0.1: dapo has no critic"),
        ({"algorithm": "ppo-separate", "value_weight": 1.0}, r"value_weight is 1.0: the critic has a trunk of its own"),
        ({"algorithm": "ppo", "critic_model": "m"}, r"critic_model is 'm': the critic shares the policy's trunk"),
        ({"algorithm": "rft", "clip_high": 0.3}, r"clip_high is 0.3: rft has no ratio to clip"),
        (
            {"algorithm": "dapo", "refresh_reference_every": 9},
            r"refresh_reference_every is 9: there is no KL, and so no reference; set kl_weight",
        ),
        ({"dataset_config": "main"}, r"dataset_config is 'main': 'arithmetic' is no data set of the hub"),
        ({"dataset": "x.jsonl", "eval_split": "test"}, r"eval_split is 'test': 'x.jsonl' is no data set of the hub"),
        ({"dataset": "gsm8k", "eval_config": "main"}, r"eval_config is 'main': there is no eval_dataset"),
        ({"lora_targets": ("q_proj",)}, r"lora_targets is \('q_proj',\): there are no adapters"),
        ({"max_refills": 2}, r"max_refills is 2: grpo does not sample dynamically; leave it out, or use dapo"),
        ({"algorithm": "rft", "importance_cap": 5.0}, r"importance_cap is 5.0: rft has no importance weights"),
        (
            {"one_step_ahead": True, "importance_cap": 0.0},
            r"one_step_ahead is True: grpo with importance_cap 0 has no importance weights",
        ),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunConfig(**options)  # pyright: ignore[reportArgumentType]


def test_defaults_depend_on_the_model_and_give_way_to_options() -> None:
    assert resolve(RunConfig(), "cpu").max_tokens == 32
    assert resolve(RunConfig(model="some/model"), "cpu").max_tokens == 1024
    assert resolve(RunConfig(max_tokens=7), "cpu").max_tokens == 7


def test_options_stand_in_for_the_algorithms_own_values() -> None:
    chosen = RunConfig(algorithm="dapo", clip_high=0.5).chosen_algorithm()
    assert (chosen.clip_low, chosen.clip_high) == (0.2, 0.5)


def test_a_run_without_a_name_never_meets_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = resolve(RunConfig(), "cpu").run_dir
    first.mkdir(parents=True)
    (first / "config.json").touch()
    second = resolve(RunConfig(), "cpu").run_dir
    assert second == first.with_name(f"{first.name}-2")
    assert resolve(RunConfig(resume=True), "cpu").run_dir == first


def test_the_linear_schedule_rises_then_falls_to_zero() -> None:
    """Warm-up 2 of 10 steps: half, then 1 - 1/10 = 0.9 of the rate at step 2, 0.1 at the last."""
    settings = resolve(RunConfig(num_steps=10, learning_rate=1.0, warmup_steps=2, schedule="linear"), "cpu")
    assert [settings.learning_rate_at(s) for s in (1, 2, 10)] == pytest.approx([0.5, 0.9, 0.1])


def test_every_option_of_an_algorithm_stands_in_for_its_own_value() -> None:
    given = {
        "kl_weight": 0.5,
        "clip_low": 0.1,
        "clip_high": 0.3,
        "entropy_weight": 0.01,
        "refresh_reference_every": 400,
    }
    chosen = RunConfig(algorithm="rloo", **given).chosen_algorithm()  # pyright: ignore
    assert {name: getattr(chosen, name) for name in given} == given


def test_an_importance_cap_of_0_is_none() -> None:
    caps = [RunConfig(importance_cap=cap).chosen_algorithm().importance_cap for cap in (None, 3.0, 0.0)]
    assert caps == [2.0, 3.0, None]


def test_settings_leave_nothing_open() -> None:
    """With LoRA the reference has no weights of its own; attention and fused are tried on the model."""
    for config in (RunConfig(), RunConfig(algorithm="sft", model="m"), RunConfig(algorithm="ppo", lora_rank=4)):
        settings = resolve(config, "cpu")
        assert all(
            getattr(settings, name) is not None for name in declared(RunConfig, ByModel) if name != "prompt_style"
        )
        is_auto = {name for name, value in vars(settings).items() if value == "auto"}
        assert is_auto <= {
            "device",
            "attention",
            "fused",
            "head_dtype",
            *(["reference_dtype"] if config.lora_rank else []),
        }


def test_settings_are_options_again() -> None:
    """As config.json has them for a resumed run: resolving them once more changes nothing."""
    for config in (RunConfig(), RunConfig(algorithm="rft"), RunConfig(algorithm="dapo", lora_rank=4, max_refills=1)):
        settings = resolve(config, "cpu")
        again = resolve(RunConfig.from_json(settings.as_json()), "cpu")
        assert again.as_json() == settings.as_json()


def test_help_shows_the_defaults_by_model(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        tyro.cli(RunConfig, args=["--help"])
    shown = capsys.readouterr().out
    assert "Training steps of the run. (default: 72 for the tiny model, 500 for others)" in shown
    assert "(default: 96 for the tiny model (80 on small-programs), 32 for others)" in shown


def test_every_option_of_a_critic_reaches_its_rule() -> None:
    options = {"gamma": 0.9, "lam": 0.8, "lam_critic": 0.7, "value_clip": 0.3, "whiten": True, "bootstrap_cut": True}
    for value, own in (("separate", {}), ("shared", {"value_weight": 0.6})):
        given = {**options, **own}
        chosen = RunConfig(algorithm="ppo", value=value, kl_in="reward", **given)  # pyright: ignore
        rule = chosen.chosen_algorithm().value_rule
        assert rule is not None and (rule.source, rule.kl_in_reward) == (value, True)
        assert {name: getattr(rule, name) for name in given} == given
    by_length = RunConfig(algorithm="ppo", lam_length=0.5).chosen_algorithm().value_rule
    assert by_length is not None and by_length.lam_length == 0.5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"algorithm": "ppo"}, 10 * 1e-6),
        ({"algorithm": "ppo-separate"}, 5 * 1e-6),
        ({"algorithm": "ppo-separate", "lora_rank": 8}, 5 * 1e-5),
        ({"algorithm": "ppo", "value": "separate", "learning_rate": 2e-6}, 5 * 2e-6),
        ({"algorithm": "ppo-separate", "value_learning_rate": 3e-6}, 3e-6),
        ({"algorithm": "grpo"}, None),
    ],
)
def test_a_critic_of_a_pretrained_model_has_a_rate_of_its_own(options: dict[str, Any], expected: float | None) -> None:
    assert resolve(RunConfig(model="some/model", **options), "cpu").value_learning_rate == pytest.approx(expected)


def test_options_of_the_update_reach_the_learner() -> None:
    update = {"temperature": 0.6, "token_budget": 99, "max_grad_norm": 0.7, "num_epochs": 3, "num_minibatches": 2}
    update["max_skipped"] = 5
    of_separate = {"critic_updates": 4}
    adam = {"learning_rate": 1e-3, "adam_beta2": 0.9, "weight_decay": 0.1}
    rest = {"algorithm": "ppo", "gradient_checkpointing": False}
    runtime = Runtime.start(dtype="float32", device="cpu")
    relative = []
    for value, rate in (("shared", None), ("shared", 3e-3), ("separate", None), ("separate", 3e-3)):
        own = {"value_trunk_scale": 0.25} if value == "shared" else of_separate
        config = RunConfig(value=value, value_learning_rate=rate, **own, **update, **adam, **rest)  # pyright: ignore
        learner = build_learner(resolve(config, "cpu"), make("qwen2"), SimpleNamespace(), runtime)  # pyright: ignore
        assert {name: getattr(learner, name) for name in update} == update
        assert learner.critic_updates == (4 if value == "separate" else 1)
        for group in learner.optimizer.param_groups:
            assert (group["betas"], group["weight_decay"]) == ((0.9, 0.9), 0.1)
        head = learner.policy.value_head
        assert value == "separate" if head is None else head.trunk_scale == 0.25
        learner.set_learning_rate(2e-3)
        assert learner.learning_rate == 2e-3
        relative.append(learner.optimizer.param_groups[1]["lr"] / learner.learning_rate)
    assert relative == pytest.approx([10, 3, 1, 3])


def test_a_reference_is_kept_for_any_weight_of_the_kl_and_for_none_it_is_not() -> None:
    runtime = Runtime.start(dtype="float32", device="cpu")
    for weight in (0.0, 1e-6):
        config = RunConfig(kl_weight=weight, gradient_checkpointing=False)
        learner = build_learner(resolve(config, "cpu"), make("qwen2"), SimpleNamespace(), runtime)  # pyright: ignore
        assert (learner.reference is not None) == (weight > 0)


def test_options_of_the_verifiers_reach_them() -> None:
    config = RunConfig(
        answer_form="hashes",
        grading=("decimal_comma=true",),
        format=("words:1",),
        format_weight=0.3,
        gate_format=False,
        verifier_deadline=7.0,
        verifier_workers=3,
    )
    options = verifier_options(config)
    assert options == VerifierOptions(
        num_workers=3,
        deadline=7.0,
        answer_form="hashes",
        grading=MathPolicy(decimal_comma=True),
        formats=("words:1",),
        format_weight=0.3,
        gate_format=False,
    )
    verifiers = Verifiers(options)
    try:
        hashes, box = verifiers["math"].verify_batch(["#### 3,14", "\\boxed{3,14}"], ["3.14", "3.14"])
        assert (hashes.outcome, box.outcome) == (Outcome.CORRECT, Outcome.NO_ANSWER)
        made = verifiers["puzzle"]
        assert isinstance(made, CombinedVerifier)
        (score,) = made.verify_batch(["none"], [{"puzzle": "sorting", "numbers": [2, 1], "order": "ascending"}])
        assert score.value == pytest.approx(0.3)  # (1 - w) 0 + w 1: not gated
    finally:
        verifiers.close()
