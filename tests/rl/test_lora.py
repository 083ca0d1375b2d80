"""Adapters: where they enter, what is left alone, and that everybody else reads them as we do."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.cli import app
from rl.objective.algorithms import GRPO
from rl.policy.load import load_pretrained
from rl.policy.lora import LoraPolicy, add_adapters
from rl.policy.merge import merge_adapters
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime
from rl.run.checkpoint import load_checkpoint, save_checkpoint
from rl.run.loop import train
from rl.run.run_folder import resume
from rl.run.tiny import tiny_tokenizer
from rl.settings.config import RunConfig
from rl.settings.resolve import resolve
from rl.update.delivery import Delivery
from rl.update.learner import Learner
from rl.update.update import update
from rollout.problem_stream import ProblemStream
from rollout.records import Problem
from rollout.torch_sampler import TorchSampler
from tests.rl.models import SIZES, make, random_batch
from tests.rl.test_loop import odd_lengths, options
from tests.rl.test_step import NoTokenizer

RANK, ALPHA = 4, 6.0
(MICRO,) = random_batch().micro_batches(10_000)
TOKENS = torch.arange(1, 12)[None]
# peft says so of every fused mixture of experts, and does target what it says it does not.
MOE_WARNING = "ignore:The following .*_pattern keys did not match:RuntimeWarning"
FAMILIES = ["qwen2", "gpt2", pytest.param("moe", marks=pytest.mark.filterwarnings(MOE_WARNING))]


def base(family: str) -> PreTrainedModel:
    if family == "moe":
        torch.manual_seed(0)
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts)).eval()
    return make(family)


def adapted(model: PreTrainedModel, *, trained: bool = True, **settings: object) -> LoraPolicy:
    adapters = add_adapters(model, rank=RANK, alpha=ALPHA, targets=("all-linear",), seed=0)
    policy = LoraPolicy.of(adapters, **settings)
    if trained:
        shift(policy)
    return policy


def shift(policy: Policy) -> None:
    """A random step of all that is trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable_parameters():
            p.add_(0.1 * torch.randn_like(p))


def logprobs(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return policy.score(MICRO, 1.0).logprobs


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return Runtime.start(dtype="float32", device="cpu")


def learner_of(policy: Policy, runtime: Runtime, *, refresh_every: int) -> Learner:
    return Learner(
        policy=policy,
        reference=policy.frozen_copy(),
        optimizer=torch.optim.AdamW(policy.trainable_parameters(), 1e-2, fused=True),
        runtime=runtime,
        algorithm=replace(GRPO, refresh_reference_every=refresh_every),
        temperature=1.0,
        token_budget=30,
        max_grad_norm=1.0,
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_gradients_are_those_of_the_merged_weights(family: str, checkpointing: bool) -> None:
    """With W' = W + s B A, dL/dB = s dL/dW' A^T and dL/dA = s B^T dL/dW': from a plain model that holds W'. Nothing else has one."""
    policy = adapted(base(family), gradient_checkpointing=checkpointing)
    merged = Policy.of(copy.deepcopy(policy.adapted).merge_and_unload().requires_grad_(True))
    for p in (policy, merged):
        scores = p.score(MICRO, 0.7)
        (MICRO.weights * (MICRO.advantages * scores.logprobs + 0.3 * scores.entropies)).sum().backward()
    ours = dict(policy.model.named_parameters())
    assert all((".lora_" in name) == (p.grad is not None) for name, p in ours.items())
    num_checked = 0
    for name, whole in merged.model.named_parameters():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" not in ours:
            continue
        a, b = (ours[f"{layer}.lora_{x}.default.weight"] for x in "AB")
        gradient = whole.grad.T if family == "gpt2" else whole.grad  # Conv1D keeps its weight the other way round
        for got, expected in ((b.grad, gradient @ a.T), (a.grad, b.T @ gradient)):
            expected = ALPHA / RANK * expected  # float32 in another order, as in test_forward.py
            assert (got - expected).abs().max() < 1e-4 * expected.abs().max() + 1e-7, name
            num_checked += 1
    assert (
        num_checked == {"qwen2": 2 * 7 * 2, "gpt2": 2 * 4 * 2}[family]
    )  # layers x (q k v o gate up down | qkv o fc proj) x (A, B)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_base_until_it_is_refreshed_and_no_second_model(family: str, tmp_path: Path) -> None:
    """Bit for bit: the base with adapters off, then the policy of the refresh, whatever the policy becomes."""
    model = base(family)
    expected = logprobs(Policy.of(copy.deepcopy(model)))
    policy = adapted(model, trained=False)
    assert torch.equal(logprobs(policy), expected)  # B = 0
    first = policy.frozen_copy()
    shift(policy)
    trained = logprobs(policy)
    assert (trained - expected).abs().max() > 0.01
    calls = []
    hooks = [m.register_forward_hook(lambda *_: calls.append(1)) for n, m in model.named_modules() if ".lora_A." in n]
    assert torch.equal(logprobs(first), expected)
    assert not calls  # off, and not multiplied by zero
    assert torch.equal(logprobs(policy), trained) and calls
    for hook in hooks:
        hook.remove()
    second = policy.frozen_copy()
    shift(policy)
    assert torch.equal(logprobs(second), trained)
    assert torch.equal(logprobs(first), expected)
    assert first.model is second.model is policy.model
    now = logprobs(policy)
    assert (now - trained).abs().max() > 0.01
    assert len(policy.trainable_parameters()) == sum(".lora_" in name for name, _ in model.named_parameters())
    for reference, scored in ((first, expected), (second, trained)):
        reference.save(tmp_path / "reference")
        policy.load(tmp_path / "reference")
        assert torch.equal(logprobs(policy), scored)


def test_steps_change_the_adapters_and_nothing_else(runtime: Runtime) -> None:
    """The KL to the base grows from 0, a refresh puts it back to 0; no frozen weight has a gradient or moves by a bit."""
    policy = adapted(base("qwen2"), trained=False)
    frozen = {name: p for name, p in policy.model.named_parameters() if not p.requires_grad}
    before = {name: p.clone() for name, p in frozen.items()}
    learner = learner_of(policy, runtime, refresh_every=3)
    divergence = []
    for step in range(1, 5):
        measured = update(learner, random_batch())
        divergence.append(measured["kl/reference"])
        assert measured["ratio/max"] == 1.0  # the policy has no dropout, and is itself again after each reference
        learner.refresh_reference(step)
    assert divergence[0] == divergence[3] == 0.0
    assert 0 < divergence[1] < divergence[2]
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in frozen.items())


@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_keeps_the_policy_apart_from_its_refreshed_reference(
    lora: bool, runtime: Runtime, tmp_path: Path
) -> None:
    stream = ProblemStream.of([Problem(id="a", prompt="1+1=", reference="2")], 0)
    saved, restored = (
        learner_of(
            adapted(base("qwen2"), trained=False) if lora else Policy.of(base("qwen2")), runtime, refresh_every=1
        )
        for _ in range(2)
    )
    shift(saved.policy)
    saved.refresh_reference(1)
    shift(saved.policy)
    folder = tmp_path / "checkpoints" / "step-000001"
    save_checkpoint(folder, step=1, learner=saved, stream=stream, tokenizer=tiny_tokenizer(), keep=1)
    assert load_checkpoint(folder, restored, stream) == 1
    assert saved.reference is not None and restored.reference is not None
    assert torch.equal(logprobs(restored.policy), logprobs(saved.policy))
    assert torch.equal(logprobs(restored.reference), logprobs(saved.reference))
    assert not torch.equal(logprobs(saved.policy), logprobs(saved.reference))


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_peft_opens_what_is_saved_and_the_merged_model_is_the_same(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is opened from: the base's folder is kept as an absolute one."""
    monkeypatch.chdir(tmp_path)
    base(family).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "saved")
    policy = adapted(load_pretrained("./base", torch.device("cpu"))[0])
    policy.save(tmp_path / "saved")
    merge_adapters(tmp_path / "saved", tmp_path / "merged")
    with torch.no_grad():
        expected = policy.model(TOKENS).logits
        fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
        assert (fresh(TOKENS).logits - expected).abs().max() > 0.1
        assert torch.equal(PeftModel.from_pretrained(fresh, str(tmp_path / "saved"))(TOKENS).logits, expected)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        assert (merged(TOKENS).logits - expected).abs().max() < 1e-4  # float32, logits near 10, sums in another order
    assert merged.state_dict().keys() == base(family).state_dict().keys()
    assert json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "base"
    )


def test_a_run_trains_adapters_that_can_be_merged(
    model: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part of a run, with gradient checkpointing and bfloat16; the export is the base plus 2 B A, added here from the saved file."""
    monkeypatch.setattr(MathVerifier, "verify_batch", odd_lengths)
    run_dir = train(
        options(model, digits, tmp_path / "run", lora_rank=RANK, gradient_checkpointing=True, dtype="bfloat16")
    )
    saved, out = run_dir / "checkpoints" / "step-000003", tmp_path / "merged"
    app.cli(prog="plumbline", args=["merge", str(saved), str(out)])
    tensors, exported = load_file(saved / "adapter_model.safetensors"), load_file(out / "model.safetensors")
    for name, weight in load_file(model / "model.safetensors").items():
        a, b = (tensors.get(f"base_model.model.{name.replace('.weight', f'.lora_{x}.weight')}") for x in "AB")
        if a is None or b is None:
            assert torch.equal(exported[name], weight)
        else:
            assert b.any()
            assert (exported[name] - (weight + 2.0 * b @ a)).abs().max() < 1e-6
    assert len(tensors) == 4 * 7 * 2  # layers x linear layers x (A, B)
    assert AutoTokenizer.from_pretrained(out)("a+b").input_ids == AutoTokenizer.from_pretrained(model)("a+b").input_ids
    with pytest.raises(UserError, match=r"model is .* holds adapters and no model; run `plumbline merge"):
        train(options(saved, digits, tmp_path / "again"))


def test_adapters_reach_a_sampler_with_a_model_of_its_own() -> None:
    policy = adapted(base("qwen2"), trained=False)
    sampler = TorchSampler(copy.deepcopy(policy.model), NoTokenizer())  # pyright: ignore[reportArgumentType]
    shift(policy)
    assert Delivery(policy, sampler, tolerance=1e-3).deliver(1) < 1e-4


@pytest.mark.parametrize(
    ("family", "targets", "message"),
    [
        ("qwen2", ("q_prj",), r"lora_targets is \('q_prj',\): \['q_prj'\] match nothing in Qwen2ForCausalLM; .*'up_proj', 'v_proj'\]"),
        ("qwen2", ("q_proj", "typo"), r"\['typo'\] match nothing"),  # peft would adapt q_proj and say nothing
        ("qwen2", ("all-linear", "q_proj"), r"\['all-linear'\] match nothing .* or all-linear alone"),
        ("qwen2", ("_proj",), r"\['_proj'\] match nothing"),
        ("qwen2", ("lm_head",), r"\['lm_head'\] match nothing"),
        ("gpt2", ("q_proj",), r"\['c_attn', 'c_fc', 'c_proj'\]"),
        ("mamba", ("all-linear",), r"peft refuses them \(.*'out_proj' is incompatible .*the linear layers here are .*'in_proj'"),
    ],
)  # fmt: skip
def test_targets_that_match_nothing_are_named(family: str, targets: tuple[str, ...], message: str) -> None:
    sizes = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = MambaForCausalLM(MambaConfig(**sizes)) if family == "mamba" else base(family)
    with pytest.raises(UserError, match=message):
        add_adapters(model, rank=RANK, alpha=ALPHA, targets=targets, seed=0)


def test_targets_are_the_ends_of_names() -> None:
    policy = LoraPolicy.of(
        add_adapters(base("qwen2"), rank=RANK, alpha=ALPHA, targets=("0.mlp.up_proj", "q_proj"), seed=0)
    )
    assert {n.partition(".lora_")[0] for n, p in policy.model.named_parameters() if p.requires_grad} == {
        "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    }  # fmt: skip


def test_adapters_start_as_the_seed_says() -> None:
    """Whatever was drawn before, so that a seed is a run; and what is drawn afterwards does not depend on them."""
    starts = []
    for seed, drawn_before in ((0, 1), (0, 2), (1, 1)):
        model = base("qwen2")
        torch.manual_seed(drawn_before)
        add_adapters(model, rank=RANK, alpha=ALPHA, targets=("q_proj",), seed=seed)
        starts.append(torch.cat([p.flatten() for p in model.parameters() if p.requires_grad]))
        assert torch.initial_seed() == drawn_before
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_what_cannot_be_merged_is_said(tmp_path: Path) -> None:
    for name in ("empty", "there"):
        (tmp_path / name).mkdir()
    base("qwen2").save_pretrained(tmp_path / "base")
    adapted(AutoModelForCausalLM.from_pretrained(tmp_path / "base")).save(tmp_path / "saved")
    with pytest.raises(UserError, match=r"checkpoint is '.*empty': it holds no adapter"):
        merge_adapters(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UserError, match=r"out is '.*there': it exists already"):
        merge_adapters(tmp_path / "saved", tmp_path / "there")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(
        UserError, match=r"base_model_name_or_path in '.*adapter_config.json': model is '.*base': there is no"
    ):
        merge_adapters(tmp_path / "saved", tmp_path / "out")


def test_options_of_lora() -> None:
    """alpha is twice the rank and the rate ten times that of all weights, unless given; out of range they are named."""
    tiny = resolve(RunConfig(lora_rank=8), "cpu")
    assert (tiny.lora_alpha, tiny.learning_rate) == (16.0, 10 * resolve(RunConfig(), "cpu").learning_rate)
    given = resolve(RunConfig(lora_rank=8, lora_alpha=4.0, learning_rate=1e-5), "cpu")
    assert (given.lora_alpha, given.learning_rate) == (4.0, 1e-5)
    with pytest.raises(UserError, match="lora_rank is -1: it must be at least 0"):
        RunConfig(lora_rank=-1)
    with pytest.raises(UserError, match=r"lora_targets is \(\): it must be names"):
        RunConfig(lora_targets=())


def test_a_run_of_all_weights_is_not_resumed_with_adapters(tmp_path: Path) -> None:
    """Nor one from before there were adapters, whose configuration does not speak of them."""
    written = {k: v for k, v in resolve(RunConfig(), "cpu").as_json().items() if not k.startswith("lora_")}
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"lora_rank is 4: the run in .* has 0; resume with that"):
        resume(resolve(RunConfig(run_dir=tmp_path, lora_rank=4), "cpu"), None, None, None)  # pyright: ignore[reportArgumentType]


def test_a_run_from_before_there_were_adapters_is_resumed(tmp_path: Path) -> None:
    """What set_up compares has its precisions written out: no adapters are a base in float32, and "auto" is younger than that."""
    written = {k: v for k, v in resolve(RunConfig(), "cpu").as_json().items() if not k.startswith("lora_")}
    (tmp_path / "config.json").write_text(json.dumps(written))
    learner = SimpleNamespace(runtime=SimpleNamespace(broadcast_from_main=lambda make: make()))
    settings = resolve(RunConfig(run_dir=tmp_path), "cpu")
    assert resume(settings, learner, None, SimpleNamespace(message=print)) == 0  # pyright: ignore[reportArgumentType]
