"""Every option of a run: its type, help, possible values, default by model, and whether a resumed run may change it.

Rules between several options are in rl/settings/checks.py; rl/settings/resolve.py fills in what is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import count, filterfalse, takewhile
from pathlib import Path
from typing import Annotated, Any, Literal

from rewards.answer_format import format_rule
from rewards.extract import AnswerForm
from rewards.reward_spec import RewardSpec, parse_rewards
from rl.forward.forward import Attention
from rl.forward.fused import Fused
from rl.objective.algorithms import ALGORITHMS, Algorithm, each_reward
from rl.objective.names import CriticSource
from rl.objective.values import ValueRule
from rl.settings.checks import RULE_OPTIONS, check
from rl.settings.declare import (
    FIXED_ON_RESUME,
    INNER_SHARE,
    MODERATE,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    Bound,
    any_of,
    at_least,
    auto_or_at_least,
    by_model,
    one_of,
    require_possible,
)
from rl.settings.defaults import ALGORITHM, TINY, TINY_ALGORITHM
from rl.settings.options import (
    A_TEXT,
    ALL_LINEAR,
    BUDGET,
    GRADING,
    AnyDType,
    BaseDType,
    DType,
    Engine,
    HeadDType,
    Offload,
    OptimizerName,
    ReferenceDType,
)
from rl.settings.written_config import holds_run, read_config, unreadable
from rollout.dataset_names import DatasetName, read_names
from rollout.problem_memory import parse_difficulty
from rollout.records import PromptStyle, ToolFormat, style_of_rewards
from rollout.thinking_budget import ThinkingBudget

NOT_EMPTY = Bound(lambda texts: "" not in texts, "strings that are not empty: an empty one is in every text")
LAYERS = Bound(lambda names: names and all(names), "names of linear layers, or all-linear")
ADDRESSES = Bound(lambda urls: urls and all(u.startswith("http") for u in urls), "addresses such as http://host:8000")
REWARDS = Bound(lambda texts: parse_rewards(texts) or not texts, "rewards")
FORMAT_RULES = Bound(lambda names: all(map(format_rule, names)), "names of rules")
SEED = Bound(lambda seed: -(2**63) <= seed < 2**63, "a number of 64 bits, from -2^63 to 2^63 - 1")
DIFFICULTY = Bound(parse_difficulty, "LOW:HIGH")
DECAY = Bound(lambda decay: 0 <= decay < 1, "in [0, 1)")
LONGEST_NAME = 100  # characters of the data sets' names in the name of a run's folder
OF_ALGORITHM = (
    "kl_weight",
    "clip_low",
    "clip_high",
    "entropy_weight",
    "dpo_beta",
    "refresh_reference_every",
    "importance_cap",
    "count_silent",
    "drop_mastered",
    "teacher_weight",
)  # None is the algorithm's own value


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """GRPO, PPO and related algorithms on answers that can be verified.

    The options as the user gives them. None and "auto" leave a value to the model, the algorithm or the device.
    """

    model: Annotated[str, FIXED_ON_RESUME] = TINY
    """"tiny" (a small model made on the spot), a local folder in Hugging Face format, or a hub name."""
    dataset: Annotated[tuple[str, ...], FIXED_ON_RESUME] = ("arithmetic",)
    """Training problems: a built-in task ("arithmetic", "small-programs", "countdown" ..., docs/tasks.md), "gsm8k", "math", a .jsonl,
    .json, .csv or .parquet file, a hub name (name:config/split), or "reasoning-gym:<task>". Several are mixed, by weights if they have
    them: a.jsonl=0.7 gsm8k=0.3 (docs/data.md)."""
    eval_dataset: Annotated[str | None, FIXED_ON_RESUME] = None
    """Held-out problems, named as in dataset: none of them is trained on, the first eval_size are evaluated. Without it eval_size problems
    of dataset are held out."""
    dataset_config: str | None = None
    """Configuration of a hub data set that has several, such as main of openai/gsm8k. Also used for eval_dataset where that is the
    same data set."""
    dataset_split: str = "train"
    """Training split of a hub data set."""
    eval_config: str | None = None
    """Configuration of eval_dataset."""
    eval_split: str | None = None
    """Split of the held-out problems: of eval_dataset (test if not given), or without eval_dataset another split of dataset."""
    prompt_column: str | None = None
    """Column of the question. If not given, it is found by its usual names."""
    answer_column: str | None = None
    """Column of the reference answer. If not given, it is found by its usual names."""
    system_column: str | None = None
    """Column of a row's own system message. If not given, it is "system" or "system_prompt", where there is one."""
    answer_form: AnswerForm | None = None
    """Where the final answer to a math problem stands, and the system prompt that asks for it: boxed, tags (<answer>), hashes (behind
    ####), last-number or text (all of it; both without a prompt). If not given: the last box, else tags, else hashes."""
    prompt_style: Annotated[PromptStyle | None, *by_model("plain", None)] = None
    """System prompt: "plain" (none), "boxed", "r1" (think and answer tags), "hashes", "code" or "program-answer" (a program that prints the
    answer). If not given, models other than the tiny one get the one that asks for an answer where the problem's verifier looks for it."""
    system_prompt: str | None = None
    """Your own system prompt, which replaces that of prompt_style."""
    chat_template: str | None = None
    """A file with a Jinja template that replaces the tokenizer's own, or the name of one of the templates that the tokenizer has."""
    max_prompt_tokens: Annotated[int | None, at_least(1)] = None
    """Longest prompt; problems with a longer one are left out."""
    drop_mastered: Annotated[float | None, POSITIVE_SHARE] = None
    """Never draw a problem again whose pass rate was at least this when it was last drawn, such as 0.9. Default by algorithm: never
    for all of them but scalerl, which has 0.9."""
    difficulty: Annotated[str | None, DIFFICULTY] = None
    """Draw only problems whose pass rate is within these bounds, such as 0.1:0.9, or unknown. It is the rate of the last time that the
    problem was drawn, before that the data set's column pass_rate, which plumbline census writes."""

    algorithm: Annotated[str | None, one_of(ALGORITHMS), *by_model(TINY_ALGORITHM, ALGORITHM), FIXED_ON_RESUME] = None
    """Name of an algorithm; docs/algorithms.md lists them with their equations."""
    kl_weight: Annotated[float | None, NOT_NEGATIVE] = None
    """Weight of the KL penalty towards the reference; with 0 no reference is kept, but for dpo and online-dpo. Default by algorithm; for
    the tiny model 0.001 where that is not 0."""
    refresh_reference_every: Annotated[int | None, at_least(0), FIXED_ON_RESUME] = None
    """Steps after which the policy is copied to the reference of the KL; 0 is never. Default by algorithm: 20 for grpo-iterative, never
    for others. DeepSeek-R1 has 400 (arXiv 2501.12948)."""
    clip_low: Annotated[float | None, NOT_NEGATIVE] = None
    """The policy ratio is clipped below 1 - clip_low. Default by algorithm."""
    clip_high: Annotated[float | None, NOT_NEGATIVE] = None
    """The policy ratio is clipped above 1 + clip_high. Default by algorithm."""
    entropy_weight: Annotated[float | None, NOT_NEGATIVE] = None
    """Weight of the entropy bonus. Default by algorithm: 0 for all of them."""
    count_silent: bool | None = None
    """Whether groups in which no completion is better than another count in the mean over the step; otherwise the step is the mean over
    the other groups. Default by algorithm: plain, scalerl, dpo and online-dpo leave them out."""
    dpo_beta: Annotated[float | None, MODERATE] = None
    """Weight of the log-ratio to the reference in the preferences of dpo and online-dpo, the mean over a completion's tokens. Default: 2."""
    teacher: str | None = None
    """Model that the policy learns from on its own samples, with the same tokenizer: each token's advantage is also teacher_weight
    times the teacher's log-prob of it minus the policy's (docs/algorithms.md). A local folder, a hub name, or the address of a vLLM
    server such as http://host:8000."""
    teacher_weight: Annotated[float | None, POSITIVE] = None
    """Weight of the teacher beside the rewards. Default: 1; the algorithm distill learns from the teacher alone."""
    num_epochs: Annotated[int, at_least(1)] = 1
    """Passes of the update over each step's samples."""
    num_minibatches: Annotated[int, at_least(1)] = 1
    """Optimizer steps per epoch, each on an equal part of the step's groups."""

    value: Annotated[CriticSource | None, FIXED_ON_RESUME] = None
    """PPO's critic: a value head on the policy's trunk ("shared"), or a model of its own ("separate"). Default by algorithm."""
    value_trunk_scale: Annotated[float, SHARE] = 1.0
    """Factor of the value loss's gradient where it enters a shared trunk; with 0 only the value head learns from it."""
    value_weight: Annotated[float, NOT_NEGATIVE] = 0.5
    """Weight of the value loss where policy and critic share a trunk."""
    value_clip: Annotated[float | None, POSITIVE] = 0.2
    """The value loss is clipped where a value moves by more than this from its old value; None turns that off."""
    value_learning_rate: Annotated[float | None, POSITIVE] = None
    """Learning rate of the critic or the value head. Default: ten times the policy's for a value head on a shared trunk; for a separate
    critic five times the policy's, and the policy's for the tiny model."""
    critic_model: Annotated[str | None, FIXED_ON_RESUME] = None
    """Model that a separate critic starts from, with the policy's vocabulary. Default: the policy's own weights."""
    critic_warmup_steps: Annotated[int, at_least(0)] = 0
    """Steps at the beginning that train the critic only."""
    critic_updates: Annotated[int, at_least(1)] = 1
    """Updates of a separate critic for each update of the policy, all towards the same returns."""
    gamma: Annotated[float, SHARE] = 1.0
    """Discount factor of rewards, per token."""
    lam: Annotated[float, SHARE] = 1.0
    """GAE lambda of the advantages: 1 is Monte Carlo, 0 is one-step TD."""
    lam_length: Annotated[float | None, POSITIVE_SHARE] = None
    """k, for a GAE lambda of the advantages by each completion's length, k^(1/L) for L tokens, in place of lam: the first token gets a
    share of the last one's credit that tends to k, however long the completion."""
    lam_critic: Annotated[float, SHARE] = 1.0
    """GAE lambda of the returns that the critic is trained on."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether PPO's KL penalty is a term of the loss or is subtracted from the rewards."""
    whiten: bool = False
    """PPO only: normalise a step's advantages to mean 0 and standard deviation 1. Needs one more forward pass per step."""
    bootstrap_cut: bool = False
    """PPO only: where max_tokens truncates a completion, the critic's value stands in for the missing rest."""

    num_steps: Annotated[int | None, at_least(1), *by_model(72, 500)] = None
    """Training steps of the run."""
    problems_per_step: Annotated[int | None, at_least(1), *by_model(96, 32, small_programs=80), FIXED_ON_RESUME] = None
    """Problems per step, over all processes."""
    group_size: Annotated[int | None, at_least(1), *by_model(10, 8), FIXED_ON_RESUME] = None
    """Completions per problem, G."""
    max_tokens: Annotated[int | None, at_least(1), *by_model(32, 1024, small_programs=24, guess_number=128)] = None
    """Longest completion, in tokens."""
    stop_strings: Annotated[tuple[str, ...], NOT_EMPTY] = ()
    """Texts that end a completion, such as </answer>; the first that appears is its last text."""
    thinking_budget: Annotated[str | None, BUDGET] = None
    """Most tokens that the model thinks before it must answer, or LOW:HIGH to draw this maximum for each completion (docs/thinking.md)."""
    thinking_waits: Annotated[int, at_least(0)] = 0
    """How often the model is made to think on where it would end its thinking."""
    thinking_end: Annotated[str, A_TEXT] = "</think>"
    """What the model writes at the end of its thinking."""
    wait_phrase: Annotated[str, A_TEXT] = "Wait"
    """What makes the model think on."""
    closing_phrase: str = "Final Answer:"
    """What is written behind thinking_end, and an empty line, where the budget ends the thinking."""
    temperature: Annotated[float, POSITIVE] = 1.0
    """Sampling temperature; the loss uses it too."""
    top_p: float = 1.0
    """Only 1: log-probs of a truncated distribution would bias the policy ratio."""
    max_refills: Annotated[int, at_least(0)] = 4
    """Dynamic sampling (dapo): most rounds of further problems that replace a step's groups with equal rewards."""
    importance_cap: Annotated[float | None, NOT_NEGATIVE] = None
    """Upper bound of the importance weights that correct for differences between sampler and trainer; 0 turns them off. Default by
    algorithm: 2."""

    lora_rank: Annotated[int, at_least(0), FIXED_ON_RESUME] = 0
    """Rank of the LoRA adapters, which are then the only trained weights; 0 trains all weights."""
    lora_alpha: Annotated[float | None, POSITIVE, FIXED_ON_RESUME] = None
    """LoRA alpha: the output of the adapters is scaled by lora_alpha / lora_rank. Default: twice lora_rank."""
    lora_targets: Annotated[tuple[str, ...], LAYERS, FIXED_ON_RESUME] = (ALL_LINEAR,)
    """Linear layers that get adapters, by the end of their names (q_proj v_proj); "all-linear" is all but the output layer."""
    lora_base: Annotated[BaseDType, FIXED_ON_RESUME] = "auto"
    """Data type of the frozen weights under the adapters; nf4 stores them in 4 bits with bitsandbytes (QLoRA). "auto" is bfloat16
    where the run computes in bfloat16 on a GPU, else float32. Layers round their weights to bfloat16 then anyway, so that only an
    embedding that was stored with more bits loses precision."""

    reference_dtype: ReferenceDType = "auto"
    """Data type of the reference model's weights; without LoRA only. "auto" as for lora_base."""

    optimizer: Annotated[OptimizerName, FIXED_ON_RESUME] = "adamw"
    """adamw-8bit (bitsandbytes) stores its two moments in 8 bits each (arXiv 2110.02861): 2 bytes per trained weight instead of 8."""
    gradient_dtype: DType = "float32"
    """bfloat16 halves the memory of the gradients. They are then summed over micro-batches with 8 bits of precision: choose a large
    token_budget, so that there are few micro-batches."""
    offload: Offload = "none"
    """What is kept in the host's memory while it is not needed: the reference model (it scores the whole step before the update),
    the optimizer's moments (they are copied to the GPU and back at each optimizer step), or all, both of them."""
    learning_rate: Annotated[float | None, POSITIVE, *by_model(4e-4, 1e-6, small_programs=6e-4), FIXED_ON_RESUME] = None
    """Peak learning rate of AdamW. With LoRA the default is ten times as high."""
    warmup_steps: Annotated[int, at_least(0)] = 10
    """Steps over which the learning rate rises linearly to its peak."""
    schedule: Annotated[Literal["constant", "linear"] | None, *by_model("linear", "constant")] = None
    """Learning rate after the warm-up: constant, or falling linearly to 0 after the last step."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    """AdamW weight decay."""
    adam_beta2: Annotated[float | None, DECAY, *by_model(0.99, 0.98)] = None
    """AdamW beta2, the decay of its second moment; beta1 is 0.9."""
    max_grad_norm: Annotated[float, POSITIVE] = 1.0
    """Gradients with a larger norm are scaled down to this norm."""
    max_skipped: Annotated[int, at_least(0)] = 3
    """Consecutive updates that may be skipped because their loss or gradient is not finite; one more stops the run."""
    token_budget: Annotated[int | Literal["auto"], auto_or_at_least(1)] = "auto"
    """Tokens in one forward pass; it changes memory and speed, not the gradient. "auto": on a CPU 4096, or one sequence if that is
    longer; on a GPU as many whole groups as fit, up to 16384 tokens, and parts of a group where that makes checkpointing unnecessary."""
    dtype: AnyDType = "auto"
    """Data type of the computation; bfloat16 is autocast over float32 weights. "auto" is bfloat16 on a GPU that has it, and on a CPU that
    multiplies in it (AVX512-BF16, AMX) for models of hidden size 256 and more, else float32."""
    head_dtype: HeadDType = "auto"
    """Data type of the output layer in the update and in the engine. float32 keeps its weights and its input exact in a run in bfloat16, so
    that the engine's log-probs are closer to the update's (docs/vllm.md). "auto" is dtype, and in the engine sampler_dtype."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass: less memory for a third more time. Default: only if an update of token_budget
    tokens does not fit without it."""
    attention: Attention = "auto"
    """Attention of the update: ragged flash attention by torch ("varlen") or by the flash-attn package ("flash"), both on a GPU in
    bfloat16, or "dense", which works everywhere. "auto" is the fastest of them that gives the model's own log-probs."""
    fused: Fused = "auto"
    """Run each norm and gated unit of the update in one kernel, Triton's on a GPU, a compiled one on a CPU: for models of Llama's shape,
    where that gives the model's own log-probs. "none" leaves them as transformers has them."""
    device: Literal["auto", "cpu"] = "auto"
    """"auto" is a GPU if there is one."""

    sampler: Literal["auto"] | Engine = "auto"
    """Engine that samples: "torch" (embedded), "vllm" (vLLM in this process) or "vllm-server" (one or several vLLM servers). "auto"
    is vllm on a GPU if vLLM is installed, else torch."""
    sampler_dtype: Literal["auto"] | DType = "auto"
    """Data type of the sampler; with bfloat16 the embedded engine decodes with a rounded copy of the weights. "auto" is dtype."""
    sampler_rows: Annotated[int | Literal["auto"], auto_or_at_least(1)] = "auto"
    """Completions that the embedded engine decodes at once. "auto": 1024, or on a GPU as many of them as fit."""
    one_step_ahead: Annotated[bool, FIXED_ON_RESUME] = False
    """Sample the next step's completions during the update. They come from a policy that is one update older, which importance
    weights correct for."""
    vllm_memory: Annotated[float, INNER_SHARE] = 0.4
    """Share of the GPU's memory that vLLM takes; on a CPU an upper bound, as a share of the free memory."""
    vllm_max_rows: Annotated[int, at_least(1)] = 256
    """Completions that vLLM decodes at once."""
    vllm_tensor_parallel: Annotated[int, at_least(1)] = 1
    """GPUs that vLLM spreads its weights over, in one process."""
    vllm_urls: Annotated[tuple[str, ...], ADDRESSES] = ("http://127.0.0.1:8000",)
    """Addresses of the servers that plumbline serve-vllm has started."""
    vllm_transfer: Literal["file", "nccl"] = "file"
    """How servers receive new weights: through a file in the run's folder, which they must be able to read, or by NCCL from GPU to
    GPU."""
    vllm_patience: Annotated[float, POSITIVE] = 600.0
    """Seconds to wait for a server that does not answer, a teacher's too."""
    reward: Annotated[tuple[str, ...], REWARDS, FIXED_ON_RESUME] = ()
    """Rewards that replace the verifiers of the problems, as name or name=weight, summed: functions (file.py:function, module:function),
    verifiers (math, program ...), format rules (boxed ...), or those of installed packages. docs/rewards.md describes them."""
    reward_normalization: Annotated[Literal["sum", "each"], FIXED_ON_RESUME] = "sum"
    """Whether a group's advantages come from its summed rewards, or each reward is normalised in the group before they are summed
    (GDPO, arXiv 2601.05242), so that rewards of other scales count by their weights."""
    reward_model: Annotated[str | None, FIXED_ON_RESUME] = None
    """Classification model with a tokenizer of its own whose scores are learnt from; the rules still say which answers are correct. With one
    label it scores answers, with two (a token classification model) the steps of grpo-process (docs/reward-model.md)."""
    reward_model_weight: Annotated[float, SHARE, FIXED_ON_RESUME] = 1.0
    """w of the reward w * model + (1 - w) * rule; 1 is the model alone, 0 measures it only."""
    reward_model_every: Annotated[int | None, at_least(1), FIXED_ON_RESUME] = None
    """Steps after which the reward model is trained on the completions of these steps, labelled by the rules. Default: never."""
    reward_model_replay: Annotated[float, DECAY] = 0.1
    """Share of each of its training batches that are completions of earlier iterations."""
    reward_model_learning_rate: Annotated[float | None, POSITIVE] = None
    """Learning rate of its AdamW. Default: 2e-5, DeepSeekMath's; 1e-3 beside the tiny model."""
    grading: Annotated[tuple[str, ...], GRADING] = ()
    """How math answers are compared, as option=value, such as decimal_comma=true; docs/grading.md lists the options."""
    format: Annotated[tuple[str, ...], FORMAT_RULES] = ()
    """Format rules that are rewarded beside correctness: think-answer, boxed, no-repetition, words:N (at most N words),
    script:NAME (the share of letters of a script, such as script:latin or script:han+kana)."""
    format_weight: Annotated[float, INNER_SHARE] = 0.1
    """Share of the reward that the format rules decide."""
    gate_format: bool = True
    """Give a wrong answer no reward for its format."""
    allow_unsafe_code: bool = False
    """Run generated programs even where this machine cannot sandbox them (see plumbline doctor)."""
    verifier_workers: Annotated[int, at_least(1)] = 2
    """Worker processes of each kind of verifier and of each reward function."""
    verifier_deadline: Annotated[float, POSITIVE] = 2.0
    """Seconds for grading one answer or one call of a reward function; programs have limits of their own."""
    max_unjudged: Annotated[float, SHARE] = 0.5
    """The run stops when a larger share of a step's answers could not be parsed, timed out or crashed the verifier."""

    tools: Annotated[tuple[str, ...], FIXED_ON_RESUME] = ()
    """Tools that the model may call: python, which runs code in a sandbox, or file.py:function or module:function, functions with types
    and a docstring that describes each argument (docs/environments.md)."""
    environment: Annotated[tuple[str, ...], FIXED_ON_RESUME] = ()
    """Classes of environments, as file.py:Class or module:Class, in which rollouts play: their methods are the model's tools. Of several,
    as NAME=file.py:Class, each row names its own in the column environment (docs/environments.md)."""
    tool_format: Annotated[ToolFormat | None, FIXED_ON_RESUME] = None
    """How the model writes calls: hermes (<tool_call> tags with JSON, also Qwen), llama3, qwen3-coder (tags for each argument) or
    code-fences (```python, then ```output; for the tool python alone). Default: as the chat template asks for."""
    max_turns: Annotated[int, at_least(1), FIXED_ON_RESUME] = 8
    """Most turns of the model in one rollout with tools or an environment."""
    tool_deadline: Annotated[float, POSITIVE] = 5.0
    """Seconds for one call of a tool or of an environment's method."""
    tool_workers: Annotated[int, at_least(1)] = 2
    """Calls that are answered at the same time, while sampling goes on. With 1 sampling waits for each, and a run on one CPU core is
    repeatable to the bit."""
    python_state: Annotated[bool, FIXED_ON_RESUME] = True
    """The tool python keeps variables between the calls of a rollout; otherwise it runs each call in a new process."""

    seed: Annotated[int, SEED, FIXED_ON_RESUME] = 0
    """Random seed of the order of problems, of sampling and of new adapters. It does not change which problems are held out."""
    eval_every: Annotated[int | None, at_least(1), *by_model(10, 25)] = None
    """Steps between evaluations."""
    eval_size: Annotated[int | None, at_least(1), *by_model(400, 200), FIXED_ON_RESUME] = None
    """Held-out problems."""
    eval_samples: Annotated[int, at_least(0)] = 0
    """Completions k sampled of each held-out problem beside the greedy one, for pass@k and maj@k."""
    run_dir: Path | None = None
    """Folder of the run. Default: runs/<model>-<dataset>-<algorithm>-seed<seed>, with a number behind it if that is taken."""
    save_every: Annotated[int, at_least(1)] = 50
    """Steps between checkpoints; the last step is always saved."""
    save_total_limit: Annotated[int, at_least(1)] = 2
    """Checkpoints to keep."""
    resume: bool = False
    """Continue from the last checkpoint in the run's folder, with its options unless they are given anew."""
    trackers: Annotated[tuple[str, ...], any_of("tensorboard", "wandb", "trackio", "swanlab", "mlflow")] = ()
    """Also log to any of tensorboard, wandb, trackio, swanlab, mlflow, through accelerate."""
    push_to_hub: str | None = None
    """Name of a repository of the Hugging Face hub, such as me/model, that the final model is uploaded to; a new one is private."""

    def __post_init__(self) -> None:
        if isinstance(self.dataset, str):  # a single one, in Python or in the config.json of an earlier run
            object.__setattr__(self, "dataset", (self.dataset,))
        require_possible(self, declared_in=RunConfig)
        check(self)

    def possible_run_dirs(self) -> Iterator[Path]:
        """The run's folder, and the next ones should another run take it first.

        Without run_dir these are the folders runs/<name>, runs/<name>-2 ... that hold no run; to resume, the last one that does.
        """
        datasets = "+".join(dataset.stem for dataset in self.datasets)[:LONGEST_NAME]
        name = f"{Path(self.model).name}-{datasets}-{self.named_algorithm.name}-seed{self.seed}"
        folders = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in count(1))
        if self.run_dir is not None:
            yield self.run_dir
        elif self.resume:
            *_, last = Path("runs") / name, *takewhile(holds_run, folders)
            yield last
        else:
            yield from filterfalse(holds_run, folders)

    @property
    def named_algorithm(self) -> Algorithm:
        """The algorithm as it is named, without the options that are given in place of its own values."""
        return ALGORITHMS[self.algorithm or (TINY_ALGORITHM if self.model == TINY else ALGORITHM)]

    @property
    def datasets(self) -> tuple[DatasetName, ...]:
        """The data sets of the training problems, with their weights."""
        return read_names(self.dataset)

    @property
    def loaded_teacher(self) -> str | None:
        """The teacher that this machine loads; None without one, and where it is behind a server."""
        return None if self.teacher is None or self.teacher.startswith(("http://", "https://")) else self.teacher

    @property
    def has_eval_data(self) -> bool:
        """Whether the held-out problems come from another data set or split than the training problems."""
        return self.eval_dataset is not None or self.eval_split is not None

    @property
    def columns(self) -> dict[str, Any]:
        """The named columns, as rollout.problems.load_problems takes them."""
        return {name: getattr(self, name) for name in ("prompt_column", "answer_column", "system_column")}

    @property
    def rewards(self) -> tuple[RewardSpec, ...]:
        """The rewards that replace the verifiers of the problems; () if there are none."""
        return parse_rewards(self.reward)

    @property
    def prompted_style(self) -> PromptStyle | None:
        """prompt_style; None leaves it to the verifier of each problem."""
        return self.prompt_style or style_of_rewards(self.rewards, self.answer_form)

    @property
    def thinking(self) -> ThinkingBudget | None:
        """The thinking budget of each completion; None without one."""
        if self.thinking_budget is None:
            return None
        return ThinkingBudget.of(
            self.thinking_budget,
            waits=self.thinking_waits,
            end=self.thinking_end,
            wait=self.wait_phrase,
            closing=self.closing_phrase,
        )

    def chosen_algorithm(self) -> Algorithm:
        """The named algorithm, with the options that are given in place of its own values. importance_cap 0 is none."""
        named = self.named_algorithm
        given: dict[str, Any] = {k: getattr(self, k) for k in OF_ALGORITHM if getattr(self, k) is not None}
        if self.importance_cap == 0:
            given["importance_cap"] = None
        if self.teacher is not None:
            given.setdefault("teacher_weight", 1.0)
        if self.reward_normalization == "each":
            given["advantage_rule"] = each_reward(named.advantage_rule, {r.name: r.weight for r in self.rewards})
        return replace(named, **given, value_rule=self._value_rule(named))

    def _value_rule(self, named: Algorithm) -> ValueRule | None:
        if named.value_rule is None:
            return None
        source = named.value_rule.source if self.value in (None, "none") else self.value
        given = {name: getattr(self, name) for name in RULE_OPTIONS}
        return ValueRule(source=source, kl_in_reward=self.kl_in == "reward", **given)

    def as_json(self) -> dict[str, Any]:
        """The options as config.json has them."""
        return json.loads(json.dumps(asdict(self), default=str))

    def of_existing_run(self) -> RunConfig | None:
        """The options that the run in this one's folder was started with, to resume it; None if the folder holds no run."""
        run_dir = next(self.possible_run_dirs())
        if not holds_run(run_dir):
            return None
        written = read_config(run_dir)
        try:
            return RunConfig.from_json({**written, "run_dir": run_dir, "resume": True})
        except TypeError as error:
            raise unreadable(run_dir, error) from None

    @staticmethod
    def from_json(written: Mapping[str, Any]) -> RunConfig:
        """Options from a run's config.json; keys that are not options are ignored."""
        known = {f.name: written[f.name] for f in fields(RunConfig) if f.name in written}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        return RunConfig(**{**known, **lists})
