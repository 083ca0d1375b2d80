"""What is "auto" fits the card by the account, or is refused with options that fit: common models on common cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from rewards.errors import UserError
from rl.capacity.account import CUDA_CONTEXT, FRAGMENTATION, GIB, Account
from rl.capacity.choose import (
    MAX_REMEDIES,
    REMEDIES,
    DeviceMemory,
    as_options,
    choose,
    fitting,
    remedies,
    rows_with_room,
    settings,
    with_defaults,
)
from rl.capacity.cost import forward_flops
from rl.command.plan import Plan, describe, load_config, make_plan
from rl.settings.options import CARDS, PlanOptions

MODELS = (
    "qwen2.5-0.5b",
    "qwen3-0.6b",
    "qwen2.5-1.5b",
    "qwen3-1.7b",
    "qwen2.5-3b",
    "qwen3-4b",
    "qwen2.5-7b",
    "qwen3-8b",
)
HOW: dict[str, dict[str, Any]] = {"full": {}, "LoRA": {"lora_rank": 16}, "QLoRA": {"lora_rank": 16, "lora_base": "nf4"}}
ALGORITHMS = ("grpo", "ppo", "ppo-separate")
GPUS = ("4090", "a100-40", "h100", "h200")


@cache
def skeleton(model: str) -> Plan:
    return make_plan(PlanOptions(model=model))


def planned(model: str, **options: Any) -> Plan:
    """32 problems x 8 completions, p 512, c 1,024 unless told otherwise."""
    plan = Plan(PlanOptions(**{"model": model, "algorithm": "grpo", **options}), skeleton(model).config)
    vars(plan)["skeleton"] = skeleton(model).skeleton  # cached_property: made once for all cells
    return plan


def peak(account: Account) -> float:
    """GiB of the whole card."""
    return (FRAGMENTATION * max(account.peak_of_update(), account.peak_of_sampling()) + CUDA_CONTEXT) / GIB


@pytest.mark.parametrize(("card", "model"), list(product(GPUS, MODELS)))
def test_the_choice_fits_or_is_refused_with_options_that_fit(card: str, model: str) -> None:
    """A named remedy is planned anew from its text, and its choice fits."""
    room = DeviceMemory.of_card(CARDS[card])
    for how, algorithm in product(HOW.values(), ALGORITHMS):
        account = planned(model, algorithm=algorithm, **how).open_account
        found = fitting(account, room)
        if found is not None:
            assert peak(choose(account, room)) == peak(found) <= CARDS[card]
            assert "auto" not in (found.asked.token_budget, found.asked.sampler_rows)
            continue
        with pytest.raises(UserError) as refused:
            choose(account, room)
        named = [changes for changes, _ in remedies(account, room)][:MAX_REMEDIES]
        assert named, f"{model} {how} {algorithm} fits a {card} in no way"
        for changes in named:
            assert as_options(changes) in str(refused.value)
            assert (
                peak(choose(planned(model, algorithm=algorithm, **{**how, **changes}).open_account, room))
                <= CARDS[card]
            )


@pytest.mark.parametrize(
    ("model", "card", "options"),
    [
        ("qwen3-8b", "h200", {"optimizer": "adamw-8bit"}),
        ("qwen3-8b", "h200", {"optimizer": "adamw-8bit", "gradient_dtype": "bfloat16"}),
        ("qwen3-4b", "4090", {"lora_rank": 16}),
        ("qwen2.5-0.5b", "4090", {}),
    ],
)
def test_what_is_promised_fits(model: str, card: str, options: dict[str, Any]) -> None:
    assert peak(choose(planned(model, **options).open_account, DeviceMemory.of_card(CARDS[card]))) <= CARDS[card]


def test_adapters_on_seven_billion_need_at_most_34_gib() -> None:
    """The base in 16 bits is there once: the engine adds the adapters itself."""
    plan = planned("qwen2.5-7b", lora_rank=16, gradient_checkpointing=True)
    assert peak(plan.account) < 34 and plan.memory()["sampler's weights"] == 0
    assert peak(planned("qwen2.5-7b", lora_rank=16, gradient_checkpointing=True, lora_base="float32").account) > 50


def test_the_fastest_that_fits_is_taken() -> None:
    """On a smaller card a part of a group goes at once, then layers are run again, then rows are fewer, then both to the utmost."""
    found = [
        choose(planned("qwen3-1.7b").open_account, DeviceMemory.of_card(gib)).asked for gib in (139.8, 62.0, 45.0, 42.0)
    ]
    assert [(run.gradient_checkpointing, run.token_budget, run.sampler_rows) for run in found] == [
        (False, 8696, 1024),
        (False, 4604, 1024),
        (True, 8696, 128),
        (True, 1535, 64),
    ]


def test_what_is_asked_for_is_kept() -> None:
    asked = {"token_budget": 3000, "gradient_checkpointing": False, "sampler_rows": 24}
    found = choose(planned("qwen2.5-0.5b", **asked).open_account, DeviceMemory.of_card(139.8)).asked
    assert {name: getattr(found, name) for name in asked} == asked
    with pytest.raises(UserError, match="--gradient-checkpointing None --token-budget auto"):
        choose(
            planned("qwen2.5-1.5b", token_budget=60_000, gradient_checkpointing=False).open_account,
            DeviceMemory.of_card(79.1),
        )


def test_budgets_are_of_whole_groups_then_of_parts_of_one() -> None:
    """p = 512, G (c - 1) = 8 x 1,023: two groups are more than 16,384 tokens; 4, 2 and 1 completions are parts."""
    sizes = list(dict.fromkeys(tokens for _, tokens in settings(planned("qwen2.5-0.5b").open_account)))
    assert sizes == [512 + n * 1023 for n in (8, 4, 2, 1)]
    short = planned("qwen2.5-0.5b", completion_length=129, group_size=4)
    assert [tokens for again, tokens in settings(short.open_account) if again][:3] == [n * 1024 for n in (16, 8, 4)]


def parts_of(account: Account, *names: str) -> Iterator[float]:
    yield from (account.parts()[name] / account.cost.all_parameters for name in names)


def test_every_option_takes_the_bytes_that_it_says() -> None:
    """Bytes a parameter, by hand: what is rounded is all but norms and biases, less than 1 in 1,000; 8 bits have a float32 scale a
    256; NF4 4 bits, an 8-bit scale for 64, and V H = 7 % twice in 16 bits."""

    def of(**options: Any) -> Account:
        return planned("qwen2.5-7b", **options).account

    names = ("parameters", "gradients", "optimiser", "reference")
    assert list(parts_of(of(), *names)) == pytest.approx([4, 4, 8, 2], rel=1e-3)
    small = of(optimizer="adamw-8bit", gradient_dtype="bfloat16", reference_dtype="float32")
    assert list(parts_of(small, *names)) == pytest.approx([4, 2, 2 + 2 * 4 / 256, 4], rel=1e-3)
    away = of(offload="all")
    assert list(parts_of(away, "optimiser", "reference")) == [0, 0]
    assert away.kept() < of().kept() - 9 * away.cost.all_parameters
    adapters = 4 * of(lora_rank=16).policy.trained
    bases = [
        of(lora_rank=16, lora_base=base).parts()["parameters"] - adapters for base in ("float32", "bfloat16", "nf4")
    ]
    tables = 2 * 152_064 * 3584
    nf4 = (0.5 + 1 / 64 + 4 / (64 * 256)) * (7_615_616_512 - tables) + 2 * tables
    assert bases == pytest.approx([4 * 7_615_616_512, 2 * 7_615_616_512, nf4], rel=1e-3)
    assert of(lora_rank=16, dtype="float32").run.lora_base == "float32"


def test_vllms_share_must_hold_its_weights_and_leave_room_for_ours() -> None:
    """1.54 billion numbers of 2 bytes are 2.9 GiB of 79.1: 0.04 with what is lost. The trainer keeps 12 bytes of each and a
    reference of 2."""
    account = replace(planned("qwen2.5-1.5b").open_account, engine="vllm")
    room = DeviceMemory.of_card(79.1)
    assert choose(account, room).peak_of_update() < room.available
    for share in (0.02, 0.8):
        with pytest.raises(UserError, match=rf"vllm_memory is {share}.* GiB.*; give 0.04 to 0.7\d"):
            choose(account.with_options(vllm_memory=share), room)
    with pytest.raises(UserError, match="no share is enough; use --sampler torch, or vllm-server"):
        choose(replace(planned("qwen3-4b").open_account, engine="vllm"), DeviceMemory.of_card(39.4))


def test_one_step_ahead_an_update_and_sampling_fit_together() -> None:
    room = DeviceMemory.of_card(CARDS["h100"])
    account = replace(planned("qwen2.5-1.5b").open_account, evaluated=1024)
    live, ahead = (fitting(account.with_options(one_step_ahead=is_ahead), room) for is_ahead in (False, True))
    assert live is not None and ahead is not None
    meanwhile = sum(ahead.parts()[name] for name in ("key-value cache", "sampler's logits"))
    alone = ahead.with_options(one_step_ahead=False)
    copy = ahead.engine_copy - alone.engine_copy  # of the weights that are sampled with
    assert ahead.peak_of_update() == pytest.approx(alone.peak_of_update() + copy + meanwhile)
    assert FRAGMENTATION * (alone.peak_of_update() + copy + meanwhile) <= room.available
    assert live.rows > ahead.rows or live.run.token_budget > ahead.run.token_budget


def test_one_step_ahead_vllm_keeps_its_share_meanwhile() -> None:
    account = replace(planned("qwen2.5-1.5b").open_account, engine="vllm")
    room = DeviceMemory.of_card(CARDS["a100-80"])
    live, ahead = (fitting(account.with_options(one_step_ahead=is_ahead), room) for is_ahead in (False, True))
    assert live is not None and ahead is not None
    share = account.run.vllm_memory * room.total
    assert (
        FRAGMENTATION * ahead.peak_of_update() + share <= room.available < FRAGMENTATION * live.peak_of_update() + share
    )


def test_a_card_smaller_than_the_model_is_said_with_numbers() -> None:
    with pytest.raises(
        UserError, match=r"model is 'qwen2.5-32b'.* GiB.*23.5 GiB.*No option is enough: use a smaller model"
    ):
        choose(planned("qwen2.5-32b").open_account, DeviceMemory.of_card(23.5))


def test_on_a_cpu_nothing_is_refused_and_nothing_changes_that_fits() -> None:
    account = Account.of(
        planned("qwen2.5-0.5b", dtype="float32").asked,
        skeleton("qwen2.5-0.5b").skeleton,
        prompt_length=512,
        device="cpu",
    )
    roomy, tight = (choose(account, DeviceMemory(gib * GIB, gib * GIB)).asked for gib in (1000, 1))
    assert (roomy.token_budget, roomy.gradient_checkpointing, roomy.sampler_rows) == (4096, False, 1024)
    assert (tight.token_budget, tight.gradient_checkpointing, tight.sampler_rows) == (4096, True, 1024)
    long = choose(replace(account, completion_length=9000), DeviceMemory(GIB, GIB)).asked
    assert long.token_budget == 512 + 9000 - 1


def test_a_plan_names_what_is_chosen_and_the_largest_that_fit() -> None:
    """One token more does not fit, nor does the next larger model."""
    text = describe(planned("qwen2.5-1.5b", card="a100-40"), None)
    assert "fits a card of 39.4 GiB" in text and "token_budget 2,558, gradient checkpointing on" in text
    assert "  model                    qwen2.5-1.5b" in text
    (length,) = (line.split()[-1] for line in text.splitlines() if line.startswith("  completion length"))
    longest = int(length.replace(",", ""))
    choose(planned("qwen2.5-1.5b", completion_length=longest).open_account, DeviceMemory.of_card(39.4))
    with pytest.raises(UserError):
        choose(planned("qwen2.5-1.5b", completion_length=longest + 1).open_account, DeviceMemory.of_card(39.4))
    text = describe(planned("qwen3-8b", card="H200"), None)
    assert "does not fit a card of 139.8 GiB" in text and "it would fit with --optimizer adamw-8bit" in text


def test_the_page_says_what_is_chosen() -> None:
    """Every row of the last table of docs/memory.md, from the options that stand in it."""
    lines = (Path(__file__).parents[2] / "docs" / "memory.md").read_text("utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| qwen")]
    assert len(rows) == 8
    for model, card, options, *numbers in rows:
        typed = options.strip("`").split() if options != "all weights" else []
        changes = {name[2:].replace("-", "_"): value for name, value in zip(typed[::2], typed[1::2], strict=True)}
        changes |= {"lora_rank": int(changes["lora_rank"])} if "lora_rank" in changes else {}
        found = choose(planned(model, algorithm=None, **changes).open_account, DeviceMemory.of_card(CARDS[card]))
        sizes = (peak(found), found.peak_of_update() / GIB, found.peak_of_sampling() / GIB)
        again = "on" if found.run.gradient_checkpointing else "off"
        assert numbers == [*(f"{x:.1f}" for x in sizes), again, f"{found.run.token_budget:,}", str(found.rows)]


def test_remedies_can_be_typed() -> None:
    """Every one of them is a run's options, and a plan's."""
    for remedy in REMEDIES:
        assert as_options(remedy).count("--") == len(remedy)
        Plan(
            PlanOptions(model="tiny", **({"lora_rank": 8} if "lora_base" in remedy else {}) | remedy),
            load_config("tiny"),
        )


def test_an_evaluation_decodes_as_many_rows_as_there_is_room_for() -> None:
    """Qwen2.5-0.5B in 16 bits: 12,288 bytes a token of keys and values (2 x 24 layers x 2 heads x 64 x 2), 16 a logit of 151,936.
    A row of 1,024 with a prompt of 512 takes 18.9 MB and 2.4 MB, of a group of 4 with one prompt 14.2 MB and 2.4 MB."""
    cost = skeleton("qwen2.5-0.5b").cost
    lengths = {"prompt_length": 512, "completion_length": 1024, "width": 2}
    row, of_four = 1.05 * (12_288 * 1536 + 16 * 151_936), 1.05 * (12_288 * (1024 + 128) + 16 * 151_936)
    for rows in (1, 64, 1024):
        assert rows_with_room(cost, 151_936, rows * row + 1, group_size=1, **lengths) == rows
        assert rows_with_room(cost, 151_936, max(4, rows) * of_four + 1, group_size=4, **lengths) == max(4, rows)
    assert rows_with_room(cost, 151_936, 64 * row - 1, group_size=1, **lengths) == 32
    assert rows_with_room(cost, 151_936, 1e15, group_size=1, **lengths) == 1024


def test_a_critic_of_another_model_is_counted_in_its_own_shape() -> None:
    """Weights, gradients and two moments of float32, of the smaller model and a head of its width; the policy's parts are the same."""
    of_policy, small = skeleton("qwen3-1.7b"), skeleton("qwen2.5-0.5b")
    same = planned("qwen3-1.7b", algorithm="ppo-separate").open_account
    other = Account.of(same.asked, of_policy.skeleton, prompt_length=512, device="cuda", critic=small.skeleton)
    shapes = [with_defaults(account).parts() for account in (same, other)]
    numbers = small.cost.all_parameters + small.config.hidden_size + 1  # its output layer is its embeddings
    assert shapes[1]["critic"] == 16 * numbers < shapes[0]["critic"] / 3
    assert {k: v for k, v in shapes[1].items() if k != "critic"} == {
        k: v for k, v in shapes[0].items() if k != "critic"
    }


def test_a_teacher_is_counted_in_its_own_shape() -> None:
    """Frozen, in bfloat16 but for its norms and biases; with head_dtype float32 its output layer, here tied to its embeddings, has 4
    bytes a number. Its forward has the policy's tokens."""
    small, plain = skeleton("qwen2.5-0.5b"), planned("qwen3-1.7b", kl_weight=0.0)
    taught = planned("qwen3-1.7b", kl_weight=0.0, teacher="qwen2.5-0.5b")
    model = small.skeleton
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1)
    biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("_proj.bias"))
    norms = small.cost.all_parameters - matrices - biases
    assert taught.memory()["teacher"] == 2 * (matrices + biases) + 4 * norms
    exact = planned("qwen3-1.7b", kl_weight=0.0, teacher="qwen2.5-0.5b", head_dtype="float32")
    assert exact.memory()["teacher"] == taught.memory()["teacher"] + 2 * 151_936 * 896
    parts, more = plain.flops(), taught.flops()
    assert {name: count for name, count in more.items() if name != "teacher"} == parts
    work = taught.micro_batches.whole.workload
    assert more["teacher"] == forward_flops(small.cost, work) > 0
    assert "teacher" in describe(taught, None)


def test_a_teacher_behind_a_server_takes_nothing_here() -> None:
    taught = planned("qwen3-1.7b", teacher="http://127.0.0.1:8000")
    assert taught.memory()["teacher"] == 0 and "teacher" not in taught.flops()


def test_the_tiny_model_may_be_a_plans_teacher() -> None:
    assert 0 < planned("qwen2.5-0.5b", teacher="tiny").memory()["teacher"] < 1e7


def test_a_teacher_that_is_not_known_is_named_as_such() -> None:
    with pytest.raises(UserError, match=r"teacher is 'nobody': it is no known model"):
        planned("qwen3-1.7b", teacher="nobody").memory()
