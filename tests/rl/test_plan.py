"""What a plan says, against counts that are not its own: the update as it is run, the operations that torch counts."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config

from rewards.errors import UserError
from rl.capacity.cost import Workload
from rl.capacity.memory import MicroBatchPlan
from rl.command.dry_run import PlaceholderReads, equal_batch
from rl.command.plan import Plan, describe, known_models, load_config, make_plan
from rl.forward.forward import packed_forward
from rl.forward.layouts import PackedRow, packed_tokens
from rl.policy.lora import add_adapters
from rl.settings.options import PlanOptions
from rl.update.batch import split_to_fit

STEP = {"group_size": 4, "problems_per_step": 8, "prompt_length": 24, "completion_length": 33, "token_budget": 512}
SIZES = {
    "3 M": Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    ),
    "30 M": Qwen2Config(
        vocab_size=32_000,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=9,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    ),
}


def planned(size: str, **options: object) -> Plan:
    config = load_config("tiny") if size == "tiny" else SIZES[size]
    return Plan(PlanOptions(**{"model": size, "dtype": "float32", "algorithm": "grpo", **STEP, **options}), config)  # pyright: ignore


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ("tiny", {}),
        ("tiny", {"algorithm": "ppo", "lora_rank": 8}),
        ("3 M", {"algorithm": "ppo"}),
        ("3 M", {"algorithm": "dpo"}),  # a reference, and the policy at the start
        ("3 M", {"algorithm": "rft", "lora_rank": 8}),
        ("3 M", {"algorithm": "ppo-separate", "dtype": "bfloat16"}),
        ("3 M", {"algorithm": "ppo-separate", "lora_rank": 8}),
        ("3 M", {"gradient_checkpointing": True, "kl_weight": 0.0}),
        ("30 M", {}),
        ("30 M", {"lora_rank": 8, "dtype": "bfloat16", "gradient_checkpointing": True}),
        ("30 M", {"problems_per_step": 2, "kl_weight": 0.0}),  # one micro-batch: no gradients before it
        ("30 M", {"lora_rank": 8, "dtype": "bfloat16"}),  # its base and its head in 16 bits
        ("30 M", {"dtype": "bfloat16", "gradient_checkpointing": True, "gradient_dtype": "bfloat16"}),
        ("30 M", {"dtype": "bfloat16", "head_dtype": "float32"}),
        ("30 M", {"dtype": "bfloat16", "head_dtype": "float32", "lora_rank": 8}),
        pytest.param(
            "30 M",
            {"optimizer": "adamw-8bit"},
            marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install 'plumbline-rl[8bit]'"),
        ),
        ("3 M", {"gpus": 8, "sharding": "full", "problems_per_step": 64}),
        ("30 M", {"gpus": 4, "sharding": "full", "problems_per_step": 32, "dtype": "bfloat16"}),
    ],
)
def test_the_formulas_agree_with_the_update_as_it_is_run(size: str, options: dict[str, object]) -> None:
    """Weights and optimiser to a thousandth; the peak, and what an update takes beyond them, to a tenth."""
    plan = planned(size, **options)
    dry = plan.dry()
    peak = plan.peak_of_update() - plan.memory()["sampler's weights"]
    assert plan.kept() == pytest.approx(dry.kept, rel=1e-3)
    assert peak == pytest.approx(dry.peak, rel=0.1)
    assert peak - plan.kept() == pytest.approx(dry.peak - dry.kept, rel=0.1)


@pytest.mark.parametrize(
    ("token_budget", "completion_length"), [(39, 9), (60, 9), (90, 9), (400, 9), (10_000, 9), (47, 33)]
)
def test_a_step_is_cut_as_the_batch_is(token_budget: int, completion_length: int) -> None:
    """Groups that fit and groups that do not, against the batch's own micro-batches."""
    made = MicroBatchPlan.of(5, 4, 15, completion_length, token_budget)
    batch = equal_batch(5, 4, 15, completion_length)
    micros = list(batch.micro_batches(token_budget))
    largest = max(micros, key=lambda micro: packed_tokens(micro.groups))
    row, laid_out = made.largest, largest.laid_out(PackedRow.of)
    assert (made.count, row.tokens, row.scored) == (len(micros), len(laid_out.input_ids), len(largest.targets))
    assert row.gathered == sum(block.key_slots.numel() for block in laid_out.blocks)
    assert row.mask == sum(block.visible(None).numel() for block in laid_out.blocks)
    assert made.whole.workload == Workload.of(
        [part for group in batch.groups for part in split_to_fit(group, token_budget)]
    )


def test_operations_are_those_that_torch_counts() -> None:
    """Matrix products of a forward exactly: attention, which runs on padded rectangles, is left out of both."""
    plan = planned("tiny", token_budget=100_000)
    (micro,) = equal_batch(8, 4, 24, 33).micro_batches(100_000)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        packed_forward.score(AutoModelForCausalLM.from_config(plan.config), micro, 1.0)
    products = sum(n for name, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))
    pairs = 4 * plan.cost.attention * plan.micro_batches.whole.workload.pairs
    assert plan.flops()["reference"] - pairs == products
    # A critic that gives its values in the pass that trains it costs 6 N_b beside the policy's 6 (N_b T + V H S) / T.
    critic = planned("tiny", algorithm="ppo-separate").flops()
    assert critic["forward/backward, critic"] == 3 * (products + pairs - 2 * plan.cost.head * 8 * 4 * 33)


def test_what_sampling_needs_by_hand() -> None:
    """Keys and values: 4 layers of 2 x 2 heads of 64 numbers; logits and probabilities of 512 words
    in float32, their sum in float64; of 2,048 rows 1,024 at once. A prompt
    is run once for its group, also where the update must split the group. A GPU rounds 24 and 33 + 1 columns up to 64."""
    for problems, rows in ((8, 32), (512, 1024)):
        plan = planned("3 M", problems_per_step=problems)
        cache, logits = 4 * (4 * 2 * 2 * 64) * (rows // 4 * 64 + rows * 64), (4 + 4 + 8) * rows * 512
        assert plan.memory()["key-value cache"] == cache and plan.memory()["sampler's logits"] == logits
        assert plan.peak_of_sampling() == plan.kept() + cache + logits
    whole, split = (planned("3 M", token_budget=budget) for budget in (100_000, 60))
    assert split.micro_batches.whole.prompts > whole.micro_batches.whole.prompts == 8
    assert split.flops()["sampling"] == whole.flops()["sampling"]


def test_each_row_has_room_for_a_context_of_its_own_where_it_may_have_later_turns() -> None:
    """32 of 24 + 33 columns, rounded up to 64, beside 32 rows of 64; the keys and values of a column as above."""
    plan = planned("3 M")
    for option in ({"tools": ("library.py:search",)}, {"thinking_budget": "9"}):
        account = replace(plan.open_account, asked=replace(plan.asked, **option))
        assert account.keys_and_values == 4 * (4 * 2 * 2 * 64) * (32 * 64 + 32 * 64)


def test_adapters_are_as_many_as_are_added() -> None:
    plan = planned("tiny", lora_rank=8)
    made = AutoModelForCausalLM.from_config(plan.config)
    adapted = add_adapters(made, rank=8, alpha=16, targets=("all-linear",), seed=0)
    assert plan.policy.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("name", "millions"), [("0.5b", 494.03), ("1.5b", 1543.71), ("7b", 7615.62), ("32b", 32763.88)]
)
def test_shipped_configs_have_the_published_numbers_of_parameters(name: str, millions: float) -> None:
    """Those of the checkpoints' weights on the hub."""
    plan = make_plan(PlanOptions(model=f"Qwen2.5-{name}"))
    assert plan.cost.all_parameters / 1e6 == pytest.approx(millions, abs=0.005)


def test_sharding_divides_what_is_kept_and_not_what_a_micro_batch_needs() -> None:
    alone, shared = planned("3 M"), planned("3 M", gpus=4, sharding="full", problems_per_step=32)
    for name in ("parameters", "gradients", "optimiser", "reference"):
        assert shared.memory()[name] == alone.memory()[name] / 4
    assert shared.memory()["activations"] == alone.memory()["activations"]
    assert shared.flops()["reference"] == 4 * alone.flops()["reference"]


def test_offloaded_weights_can_be_asked_for_on_the_command_line() -> None:
    """docs/scale.md shows it; the type of the option had lost it."""
    assert tyro.cli(PlanOptions, args=["--model", "tiny", "--gpus", "2", "--sharding", "offload"]).sharding == "offload"


def test_with_offloaded_weights_a_gpu_holds_what_a_micro_batch_needs_and_layers_in_turn() -> None:
    """No weights, gradients or moments between updates; the update gathers, computes and reduces as with sharding alone."""
    sharded, offloaded = (planned("3 M", gpus=4, sharding=s, problems_per_step=32) for s in ("full", "offload"))
    moved = ("parameters", "gradients", "optimiser", "reference")
    assert all(offloaded.memory()[name] == 0 < sharded.memory()[name] for name in moved)
    assert offloaded.kept() == 0
    same = set(sharded.memory()) - {*moved, "critic"}
    assert all(offloaded.memory()[name] == sharded.memory()[name] for name in same)
    freed = sharded.kept() + sharded.memory()["gradients"]
    assert offloaded.micro_batches.count > 1 and offloaded.peak_of_update() == sharded.peak_of_update() - freed
    assert offloaded.traffic() == sharded.traffic()


def test_what_is_sent_is_a_share_of_what_there_is() -> None:
    """Two GPUs: half of the weights are elsewhere, a sum in a ring is twice that. Four micro-batches a GPU, each with a reference."""
    plain, sharded = (planned("3 M", gpus=2, sharding=s) for s in ("none", "full"))
    numbers, micros = plain.cost.all_parameters, plain.micro_batches.count
    assert micros > 1
    assert plain.traffic()["gradients"] == 4 * numbers and plain.traffic()["weights"] == 0
    assert sharded.traffic()["gradients"] == 2 * numbers * micros
    assert sharded.traffic()["weights"] == 2 * numbers * micros * 3
    assert sharded.traffic()["weights to the sampler"] == 2 * numbers and plain.traffic()["weights to the sampler"] == 0
    served = planned("3 M", gpus=2, sampler="vllm-server")
    assert served.traffic()["weights to the sampler"] == 4 * numbers
    assert served.peak_of_sampling() < plain.peak_of_sampling()
    assert plain.traffic()["what was sampled"] == 7 * 8 * 4 * 33


def test_what_a_plan_prints_names_every_part_and_the_verdict() -> None:
    plan = planned("tiny", card=1e-3)
    text = describe(plan, None)
    for part in (*plan.memory(), *plan.flops(), "peak of the update", "does not fit a card of 0.001 GiB"):
        assert part in text
    assert "\nfits a card" in describe(replace(plan, options=replace(plan.options, card=100.0)), None)


def test_reads_are_made_up_and_copies_are_apart() -> None:
    tensor = torch.nn.Parameter(torch.tensor([3.0]))
    with PlaceholderReads():
        assert tensor.item() == float(tensor) == 0.0 and bool(tensor.sum() < 0)
        copied = copy.deepcopy(tensor)
    assert isinstance(copied, torch.nn.Parameter) and copied.data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "qwen9"}, "model is 'qwen9'.*qwen2.5-7b"),
        ({"algorithm": "grpo", "value": "shared"}, "value is 'shared': grpo has no critic"),
        ({"algorithm": "ppo", "value": "none"}, "value is 'none': ppo needs a critic"),
        ({"algorithm": "best"}, "algorithm is 'best'.*ppo"),
        ({"prompt_length": 0}, "prompt_length is 0: it must be at least 1"),
        ({"completion_length": 1}, "completion_length is 1: it must be at least 2"),
        ({"token_budget": 55}, "token_budget is 55.*56 tokens"),
        ({"gpus": 9}, "gpus is 9.*8"),
        ({"sharding": "full"}, "sharding is 'full'.*gpus"),
        ({"sharding": "offload"}, "sharding is 'offload'.*gpus"),
        ({"card": 0.0}, "card is 0"),
        ({"group_size": 0}, "group_size is 0"),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        describe(make_plan(PlanOptions(**{"model": "tiny", **STEP, **options})), None)  # pyright: ignore


def test_a_config_is_found_by_folder_and_by_file_and_one_of_another_shape_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(load_config("qwen2.5-0.5b").to_dict()))
    assert load_config(str(tmp_path)).hidden_size == load_config(str(config)).hidden_size == 896
    config.write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UserError, match="intermediate_size"):
        load_config(str(tmp_path))
    assert {"tiny", "qwen2.5-32b"} <= set(known_models())
