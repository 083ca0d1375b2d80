"""Every option of a run, and what it stands for. What cannot be is refused by rl/settings/checks.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from rewards.errors import UserError, first_line
from rl.forward.forward import Attention
from rl.forward.fused import Fused
from rl.objective.algorithms import ALGORITHMS, Algorithm
from rl.objective.names import CriticSource
from rl.objective.values import ValueRule
from rl.settings.checks import RULE_OPTIONS, check
from rl.settings.defaults import (
    LORA_RATE,
    MODEL_DEFAULTS,
    TINY,
    TINY_DEFAULTS,
    TINY_KL_WEIGHT,
    TOKENS_ON_A_CPU,
    resolved_dtype,
    tiny_task,
)
from rl.settings.options import AnyDType, BaseDType, DType, Offload, OptimizerName, ReferenceDType
from rollout.records import PromptStyle


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """GRPO, PPO and their relatives on checked answers.

    An option marked "by model" has two defaults: the first for the tiny built-in model on arithmetic, the second for real models.
    """

    model: str = TINY
    """"tiny" (built on the spot), a local folder in Hugging Face format, or a hub name."""
    dataset: str = "arithmetic"
    """A built-in task ("arithmetic", "small-programs", "countdown" ..., docs/tasks.md), "gsm8k", "math", a .jsonl or .json file, a
    hub name (its split train), or "reasoning-gym:<task>"."""
    eval_dataset: str | None = None
    """Held-out problems, as `dataset`; without it eval_size problems of `dataset` are held out."""
    dataset_config: str | None = None
    """Configuration of a hub data set that has several, such as main of openai/gsm8k; also of eval_dataset where that is the same."""
    dataset_split: str = "train"
    """Split of a hub data set that is trained on."""
    eval_config: str | None = None
    """Configuration of eval_dataset."""
    eval_split: str | None = None
    """Split of eval_dataset, otherwise test; without eval_dataset the split of `dataset` that the held-out problems are taken from."""
    prompt_column: str | None = None
    """Column of the question; found by its usual names otherwise."""
    answer_column: str | None = None
    """Column of the reference answer; found by its usual names otherwise."""
    prompt_style: PromptStyle | None = None
    """System prompt: "plain" (none), "boxed", "r1" (think and answer tags) or "code". By model: plain; the one that tells where the
    problem's verifier looks for the answer."""
    system_prompt: str | None = None
    """A system prompt of your own, in place of prompt_style's."""
    chat_template: str | None = None
    """A file with a Jinja template in place of the tokenizer's own, or the name of one of several that the tokenizer has."""
    max_prompt_tokens: int | None = None
    """Problems with a longer prompt are left out."""

    algorithm: str = "grpo"
    """A name in rl/objective/algorithms.py; docs/algorithms.md has their equations."""
    kl_weight: float | None = None
    """Weight of the KL to the reference; 0 runs no reference. By model and algorithm."""
    clip_low: float | None = None
    """The ratio is clipped below 1 - clip_low. By algorithm."""
    clip_high: float | None = None
    """The ratio is clipped above 1 + clip_high. By algorithm."""
    entropy_weight: float | None = None
    """Weight of the entropy bonus. By algorithm: 0 for all of them."""
    num_epochs: int = 1
    """Times that each step's samples are trained on."""
    num_minibatches: int = 1
    """Updates in an epoch, each on its part of the step's groups."""

    value: CriticSource | None = None
    """PPO's critic: a head on the policy's own trunk, or a model of its own. By algorithm."""
    value_trunk_scale: float = 1.0
    """Share of the value loss's gradient that a shared trunk gets; at 0 the head reads it only."""
    value_weight: float = 0.5
    """Weight of the value loss where the trunk is shared."""
    value_clip: float | None = 0.2
    """A value counts as moved by at most this much; None is off."""
    value_learning_rate: float | None = None
    """Of the critic or the value head. By value: separate the policy's, shared ten times the policy's."""
    critic_model: str | None = None
    """The critic's trunk at the start, of the policy's vocabulary; otherwise the policy's own weights."""
    critic_warmup_steps: int = 0
    """First steps that train the critic only."""
    gamma: float = 1.0
    """Discount of a token's reward by each token before it."""
    lam: float = 1.0
    """GAE: 1 weighs what really came, 0 what the critic says of the next token."""
    lam_critic: float = 1.0
    """The same for the returns that the critic is trained towards."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where PPO's KL to the reference counts."""
    whiten: bool = False
    """Advantages of a step are centred and scaled to std 1; PPO only, and needs a forward beforehand."""
    bootstrap_cut: bool = False
    """PPO takes a completion that the token limit cut to go on as its value says, not to end."""

    num_steps: int | None = None
    """Steps of the run. By model: 72, 500."""
    problems_per_step: int | None = None
    """Problems that are drawn for a step. By model: 96, 32."""
    group_size: int | None = None
    """Completions per problem, G. By model: 10, 8."""
    max_tokens: int | None = None
    """Longest completion. By model: 32, 1024."""
    stop_strings: tuple[str, ...] = ()
    """A completion also ends behind the first of these, such as </answer>."""
    temperature: float = 1.0
    """Of sampling, and of the log-probs in the update."""
    top_p: float = 1.0
    """Only 1: log-probs of a truncated distribution would bias the ratio."""

    lora_rank: int = 0
    """Rank of the LoRA adapters, which alone are then trained; 0 trains all weights."""
    lora_alpha: float | None = None
    """What the adapters give is scaled by lora_alpha / lora_rank. By lora_rank: twice it."""
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Linear layers that get adapters, by the end of their names (q_proj v_proj); "all-linear" is all but the output layer."""
    lora_base: BaseDType = "auto"
    """Precision of the frozen weights under the adapters; nf4 keeps them in 4 bits (QLoRA), by bitsandbytes. "auto" is bfloat16
    where the run computes in bfloat16 on a GPU, else float32: layers round their weights then anyway, so nothing is lost but of
    an embedding that was not stored in bfloat16."""

    reference_dtype: ReferenceDType = "auto"
    """Precision of the reference's weights where it is a model of its own (no LoRA). "auto" as for lora_base."""

    optimizer: OptimizerName = "adamw"
    """adamw-8bit keeps its two moments in 8 bits each (arXiv 2110.02861), by bitsandbytes: 2 bytes a trained number and not 8."""
    gradient_dtype: DType = "float32"
    """bfloat16 halves the gradients' memory. They are added up over micro-batches with 8 bits of precision then: give a large
    token_budget, so that there are few."""
    offload: Offload = "none"
    """What waits in the host's memory while it is not needed: the reference (it scores the whole step at once, before the update),
    the optimiser's moments (they travel to the GPU and back at each update), or all, both."""
    learning_rate: float | None = None
    """Of AdamW. By model: 4e-4, 1e-6; ten times that with LoRA."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises to its value."""
    schedule: Literal["constant", "linear"] | None = None
    """After the warm-up: constant, or falling in a line to 0 after the last step. By model: linear, constant."""
    weight_decay: float = 0.0
    """Of AdamW."""
    adam_beta2: float = 0.99
    """Of AdamW, the decay of its second moment; that of the first is 0.9."""
    max_grad_norm: float = 1.0
    """A longer gradient is scaled down to this length."""
    max_skipped: int = 3
    """Updates in a row that are left out because their loss or gradient is not finite; one more stops the run."""
    token_budget: int | Literal["auto"] = "auto"
    """Tokens in one forward; the gradient does not depend on it, memory does. "auto": on a CPU 8192, or one sequence if that is
    longer; on a GPU whole groups, as many as fit up to 16384 tokens, and parts of one where that saves checkpointing."""
    dtype: AnyDType = "auto"
    """bfloat16 is autocast over float32 weights. "auto" is bfloat16 on a GPU that has it, else float32."""
    gradient_checkpointing: bool | None = None
    """Less memory for a third more time. Off, unless an update of token_budget tokens would not fit without it."""
    attention: Attention = "auto"
    """Of the update: ragged flash attention by torch ("varlen") or by the flash-attn package ("flash"), on a GPU in bfloat16;
    "dense" works everywhere. "auto" is the fastest of those that give the model's own log-probs."""
    fused: Fused = "auto"
    """Norms and gated units of the update run by one Triton kernel each, on a GPU, where that gives the model's own log-probs (models
    of Llama's shape); "none" leaves them as transformers has them."""
    device: Literal["auto", "cpu"] = "auto"
    """"auto" is a GPU where there is one."""

    sampler: Literal["auto", "torch", "vllm", "vllm-server"] = "auto"
    """"torch" is the embedded engine, "vllm" vLLM in this process, "vllm-server" one or several servers. "auto" is vllm where
    there is a GPU and vLLM, else torch."""
    sampler_dtype: Literal["auto"] | DType = "auto"
    """The engine's; the embedded one decodes with a copy of the weights in bfloat16. "auto" is dtype."""
    sampler_rows: int | Literal["auto"] = "auto"
    """Completions that the embedded engine decodes at once. "auto": 1024, on a GPU as many of them as fit."""
    one_step_ahead: bool = False
    """Sample the next step's completions while this one is trained on. They are one update old then, which importance weights
    correct."""
    vllm_memory: float = 0.4
    """Share of the GPU's memory that vLLM takes for itself; on a CPU the most of what is free."""
    vllm_max_rows: int = 256
    """Completions that vLLM decodes at once."""
    vllm_tensor_parallel: int = 1
    """GPUs that vLLM's weights are spread over, in one process."""
    vllm_urls: tuple[str, ...] = ("http://127.0.0.1:8000",)
    """Servers (plumbline serve-vllm)."""
    vllm_transfer: Literal["file", "nccl"] = "file"
    """Of weights to servers: a file in the run's folder, which they must see, or NCCL from GPU to GPU."""
    vllm_patience: float = 600.0
    """Seconds that a server which does not answer is waited for."""
    format: tuple[str, ...] = ()
    """Rules of form beside correctness, any of think-answer, boxed, no-repetition, words:N (at most N words)."""
    format_weight: float = 0.1
    """Share of the reward that is the form's."""
    gate_format: bool = True
    """A wrong answer earns nothing for its form."""
    allow_unsafe_code: bool = False
    """Run programs even where this machine cannot shut them in (see `plumbline doctor`)."""
    verifier_workers: int = 2
    """Processes that judge at once, for each kind of verifier."""
    verifier_deadline: float = 2.0
    """Seconds that judging one answer may take; programs have limits of their own."""
    max_unjudged: float = 0.5
    """The run stops when more than this share of a step's answers were unparsed, timed out or crashed the verifier."""

    seed: int = 0
    """Of the order of the problems, of the samples, and of new adapters. What is held out does not depend on it."""
    eval_every: int | None = None
    """Steps between evaluations. By model: 10, 25."""
    eval_size: int | None = None
    """Problems held out. By model: 400, 200."""
    eval_samples: int = 0
    """Completions k of each of them, sampled besides, for pass@k and the vote of k; 0 is the greedy one alone."""
    run_dir: Path | None = None
    """Folder of the run; otherwise runs/<model>-<dataset>-<algorithm>-seed<seed>, with a number behind it where that is taken."""
    save_every: int = 50
    """Steps between checkpoints; the last step is always saved."""
    save_total_limit: int = 2
    """Checkpoints that are kept."""
    resume: bool = False
    """Go on from the run folder's last checkpoint."""
    trackers: tuple[str, ...] = ()
    """Any of tensorboard, wandb, trackio: also log there, through accelerate."""

    def __post_init__(self) -> None:
        check(self)

    def resolved(self, *, after: Path | None = None) -> RunConfig:
        """The same run with every "by model" default, and the type that this machine computes in, written out.

        after: a folder that another run has just taken.
        """
        defaults = dict(TINY_DEFAULTS[tiny_task(self.dataset)] if self.model == TINY else MODEL_DEFAULTS)
        if self.model == TINY and ALGORITHMS[self.algorithm].kl_weight > 0:
            defaults["kl_weight"] = TINY_KL_WEIGHT
        if ALGORITHMS[self.algorithm].samples_from == "dataset":
            defaults["group_size"] = 1
        if self.lora_rank > 0:
            defaults["lora_alpha"] = 2.0 * self.lora_rank
            defaults["learning_rate"] *= LORA_RATE
        if self.critic_warmup_steps >= (self.num_steps or defaults["num_steps"]):
            raise UserError(
                f"critic_warmup_steps is {self.critic_warmup_steps}: it must be less than num_steps, "
                f"{self.num_steps or defaults['num_steps']}, for the policy to be trained at all"
            )
        filled = {k: v for k, v in defaults.items() if getattr(self, k) is None}
        return replace(self, **filled, dtype=self.computing_dtype, run_dir=self.run_dir or self._unused_run_dir(after))

    def _unused_run_dir(self, after: Path | None = None) -> Path:
        """runs/<what the run is>, with a number where that folder is taken; the newest of them where the run is resumed."""
        name = f"{Path(self.model).name}-{Path(self.dataset).stem}-{self.algorithm}-seed{self.seed}"
        taken, is_passed = 1, after is None
        while not is_passed or (_numbered(name, taken) / "config.json").exists():
            is_passed = is_passed or _numbered(name, taken) == after
            taken += 1
        return _numbered(name, max(1, taken - 1) if self.resume else taken)

    def on(self, device_type: str, *, shards: bool = False) -> RunConfig:
        """The same run with the precisions written out that depend on the device. Sharded weights are all of one type, float32."""
        rounds = self.computing_dtype == "bfloat16" and device_type == "cuda" and not shards
        frozen = "bfloat16" if rounds else "float32"
        base = self.lora_base if self.lora_base != "auto" else frozen if self.lora_rank else "float32"
        reference = frozen if self.reference_dtype == "auto" and not self.lora_rank else self.reference_dtype
        return replace(self, lora_base=base, reference_dtype=reference)

    @property
    def has_eval_data(self) -> bool:
        """Whether the held-out problems are others than those of the training data."""
        return self.eval_dataset is not None or self.eval_split is not None

    @property
    def tokens_at_once(self) -> int:
        """token_budget, or what stands for it until it is chosen (rl/capacity/choose.py)."""
        return TOKENS_ON_A_CPU if self.token_budget == "auto" else self.token_budget

    def rounds_base(self, device_type: str) -> bool:
        """Whether frozen weights are kept in bfloat16: all, or those outside of layers in 4 bits."""
        in_4_bits = self.lora_base == "nf4" and self.computing_dtype == "bfloat16" and device_type == "cuda"
        return self.lora_base == "bfloat16" or in_4_bits

    @property
    def computing_dtype(self) -> DType:
        return resolved_dtype(self.dtype, self.device)

    @property
    def sampling_dtype(self) -> DType:
        return self.computing_dtype if self.sampler_dtype == "auto" else self.sampler_dtype

    def learning_rate_at(self, step: int) -> float:
        """A function of the step alone, so that a resumed run needs no state of it."""
        rate = (self.learning_rate or 0.0) * min(1.0, step / max(1, self.warmup_steps))
        return rate * (1 - (step - 1) / (self.num_steps or 1)) if self.schedule == "linear" else rate

    def chosen_algorithm(self) -> Algorithm:
        """The named algorithm with this run's options in place of its own."""
        named = ALGORITHMS[self.algorithm]
        options = ("kl_weight", "clip_low", "clip_high", "entropy_weight")
        given = {k: getattr(self, k) for k in options if getattr(self, k) is not None}
        return replace(named, **given, value_rule=self._value_rule(named))

    def _value_rule(self, named: Algorithm) -> ValueRule | None:
        if named.value_rule is None:
            return None
        source = named.value_rule.source if self.value in (None, "none") else self.value
        given = {name: getattr(self, name) for name in RULE_OPTIONS}
        return ValueRule(source=source, kl_in_reward=self.kl_in == "reward", **given)

    def as_json(self) -> dict[str, Any]:
        """As it reads from a JSON file."""
        return json.loads(json.dumps(asdict(self), default=str))

    def of_its_run(self) -> RunConfig | None:
        """What the run in this one's folder was started with, to be resumed; None where there is no run."""
        run_dir = self.resolved().run_dir
        assert run_dir is not None
        if not (run_dir / "config.json").exists():
            return None
        written = read_config(run_dir)
        try:
            return RunConfig.from_json({**written, "run_dir": run_dir, "resume": True})
        except TypeError as error:
            raise unreadable(run_dir, error) from None

    @staticmethod
    def from_json(written: Mapping[str, Any]) -> RunConfig:
        """As a run has written it down; what is no option is ignored."""
        known = {f.name: written[f.name] for f in fields(RunConfig) if f.name in written}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return RunConfig(**{**known, **lists})


def read_config(run_dir: Path) -> dict[str, Any]:
    """The config.json that a run has written."""
    try:
        written = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(run_dir, error) from None
    if not isinstance(written, dict):
        raise unreadable(run_dir, TypeError("it is no JSON object"))
    return written


def unreadable(run_dir: Path, error: Exception) -> UserError:
    return UserError(
        f"run_dir is {str(run_dir)!r}: its config.json cannot be read ({first_line(error)}); restore it from a copy, or start a new run"
    )


def _numbered(name: str, number: int) -> Path:
    return Path("runs") / (name if number == 1 else f"{name}-{number}")
