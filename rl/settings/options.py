"""Types of options, and the options of `plumbline evaluate`, `census` and `plan`. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from rewards.errors import UserError
from rewards.extract import AnswerForm
from rewards.math_policy import MathPolicy
from rl.objective.names import CriticSource
from rl.settings.declare import NOT_NEGATIVE, POSITIVE, Bound, at_least, require_possible
from rollout.contamination import NGRAM
from rollout.records import PromptStyle, ToolFormat
from rollout.thinking_budget import ThinkingBudget, parse_budgets, parse_range

DType = Literal["float32", "bfloat16"]
AnyDType = Literal["auto", "float32", "bfloat16"]
HeadDType = Literal["auto", "float32"]
BaseDType = Literal["auto", "float32", "bfloat16", "nf4"]
ReferenceDType = Literal["auto", "float32", "bfloat16"]
OptimizerName = Literal["adamw", "adamw-8bit"]
Offload = Literal["none", "reference", "optimizer", "all"]
Engine = Literal["torch", "vllm", "vllm-server"]
ALL_LINEAR = "all-linear"
# Memory of each card in GiB, as torch reports it.
CARDS = {"4090": 23.5, "a100-40": 39.4, "a100-80": 79.1, "h100": 79.1, "h200": 139.8, "b200": 178.4}
GRADING = Bound(MathPolicy.parse, "option=value")
BUDGET = Bound(parse_range, "a number of tokens, or LOW:HIGH")
NO_BUDGET = "none"
BUDGET_OR_NONE = Bound(lambda text: text == NO_BUDGET or parse_range(text), "a number of tokens, LOW:HIGH, or none")
BUDGETS = Bound(parse_budgets, "numbers of tokens, such as 0,64,128")
A_TEXT = Bound(bool, "a text that is not empty")
FIGURES = (".png", ".svg", ".pdf")
ABOVE_0 = Bound(lambda value: value > 0, "more than 0; greedy accuracy is always measured")


def require_writable(option: str, path: Path | None) -> None:
    """Raises UserError for a file that cannot be written, a folder or one in a folder that is not there."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        is_what = "it is a folder" if path.is_dir() else f"there is no folder {str(path.parent)!r}"
        raise UserError(f"{option} is {str(path)!r}: {is_what}; name a file in an existing folder")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Options of the commands that sample completions of a data set. For a checkpoint of a run, None takes the run's own value where the
    help says so."""

    model: str
    """tiny, a checkpoint of a run (LoRA adapters too), a folder in Hugging Face format or a hub name."""
    dataset: str | None
    """Problems, named as in training."""
    dataset_config: str | None = None
    """Configuration of a hub data set that has several, such as main of openai/gsm8k."""
    split: str
    """Split of a hub data set."""
    size: Annotated[int | None, at_least(1)] = None
    """Number of problems, the first ones. Default: all."""
    samples: int
    """Completions sampled of each problem."""
    temperature: Annotated[float, ABOVE_0] = 1.0
    """Sampling temperature."""
    max_tokens: Annotated[int | None, at_least(1)] = None
    """Longest completion, in tokens. Default: the run's for a checkpoint, else 1024."""
    answer_form: AnswerForm | None = None
    """Where the final answer to a math problem stands, as in training. Default: the run's for a checkpoint."""
    prompt_style: PromptStyle | None = None
    """System prompt. Default: the run's for a checkpoint, else the one that asks for an answer where the verifier looks for it."""
    system_prompt: str | None = None
    """Your own system prompt, which replaces that of prompt_style."""
    chat_template: str | None = None
    """A file with a Jinja template that replaces the tokenizer's own, or the name of one of the templates that the tokenizer has."""
    max_prompt_tokens: Annotated[int | None, at_least(1)] = None
    """Longest prompt; problems with a longer one are left out. Default: the run's for a checkpoint."""
    stop_strings: tuple[str, ...] | None = None
    """Texts that end a completion. Default: the run's for a checkpoint."""
    thinking_budget: Annotated[str | None, BUDGET_OR_NONE] = None
    """Most tokens that the model thinks before it must answer, or LOW:HIGH, as in training; "none" is no budget, also where the
    checkpoint's run has one. Default: the run's for a checkpoint."""
    thinking_waits: Annotated[int | None, at_least(0)] = None
    """How often the model is made to think on where it would end its thinking. Default: the run's for a checkpoint, else 0."""
    thinking_end: Annotated[str | None, A_TEXT] = None
    """What the model writes at the end of its thinking. Default: the run's for a checkpoint, else </think>."""
    wait_phrase: Annotated[str | None, A_TEXT] = None
    """What makes the model think on. Default: the run's for a checkpoint, else Wait."""
    closing_phrase: str | None = None
    """What is written behind thinking_end where the budget ends the thinking. Default: the run's for a checkpoint, else Final Answer:."""
    reward: tuple[str, ...] | None = None
    """Rewards that replace the verifiers of the problems, named as for a run. Default: the run's for a checkpoint."""
    verifier_deadline: Annotated[float | None, POSITIVE] = None
    """Seconds for grading one answer or one call of a reward function. Default: the run's for a checkpoint, else 2."""
    grading: Annotated[tuple[str, ...] | None, GRADING] = None
    """How math answers are compared, as option=value, such as decimal_comma=true; docs/grading.md lists the options. Default: the
    run's for a checkpoint."""
    tools: tuple[str, ...] | None = None
    """Tools that the model may call, named as for a run. Default: the run's for a checkpoint."""
    environment: tuple[str, ...] | None = None
    """Classes of environments in which rollouts play, named as for a run. Default: the run's for a checkpoint."""
    tool_format: ToolFormat | None = None
    """How the model writes calls. Default: the run's for a checkpoint, else as the chat template asks for."""
    max_turns: Annotated[int | None, at_least(1)] = None
    """Most turns of the model in one rollout with tools. Default: the run's for a checkpoint, else 8."""
    tool_deadline: Annotated[float | None, POSITIVE] = None
    """Seconds for one call of a tool. Default: the run's for a checkpoint, else 5."""
    tool_workers: Annotated[int | None, at_least(1)] = None
    """Calls that are answered at the same time. Default: the run's for a checkpoint, else 2."""
    python_state: bool | None = None
    """The tool python keeps variables between the calls of a rollout. Default: as the run for a checkpoint, else it does."""
    dtype: AnyDType = "auto"
    """Data type of the sampler; "auto" is bfloat16 on a GPU that has it, and on a CPU that multiplies in it for models of hidden size 256
    and more, else float32."""
    sampler: Literal["torch", "vllm"] = "torch"
    """The embedded engine, or vLLM in this process."""
    seed: int = 0
    """Random seed of sampling."""
    allow_unsafe_code: bool = False
    """Run generated programs even where this machine cannot sandbox them."""
    device: Literal["auto", "cpu"] = "auto"
    """"auto" is a GPU if there is one."""
    out: Path | None = None
    """File to write the results to."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=type(self))
        self.require_out()

    def require_out(self) -> None:
        """Raises UserError if the results cannot be written there."""
        require_writable("out", self.out)

    def thinking(self) -> ThinkingBudget | None:
        """The thinking budget of each completion; None without one. Raises UserError for phrases of a budget that there is not."""
        named = ThinkingBudget.of(
            self.thinking_budget or "0",
            waits=self.thinking_waits,
            end=self.thinking_end,
            wait=self.wait_phrase,
            closing=self.closing_phrase,
        )
        if self.thinking_budget is not None:
            return named
        if named != ThinkingBudget(least=0, most=0):
            raise UserError(
                "thinking_waits, thinking_end, wait_phrase or closing_phrase is given: there is no thinking budget; set thinking_budget, "
                "or leave them out"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(SamplingOptions):
    """Options of `plumbline evaluate`. For a checkpoint of a run, None takes the run's own value where the help says so."""

    model: tyro.conf.Positional[str]
    """tiny, a checkpoint of a run (LoRA adapters too), a folder in Hugging Face format or a hub name."""
    dataset: str | None = None
    """Problems, named as in training. Default for a checkpoint: the problems that its run held out."""
    split: str = "test"
    """Split of a hub data set."""
    suite: tuple[str, ...] | None = None
    """Published test sets to evaluate on in place of a data set: their names, or math, code or all (docs/evaluate.md)."""
    suite_files: Path | None = None
    """Folder of test sets as they are published, in files such as gsm8k.jsonl, which are read instead of the hub."""
    samples: Annotated[int, at_least(0)] = 0
    """Completions n sampled of each problem beside the greedy one, for pass@1, 2, 4 ... n and maj@n. With suite: those of each problem,
    for avg@n, pass@n and maj@n; 0 is each set's own number."""
    temperature: Annotated[float, NOT_NEGATIVE] = 1.0
    """Sampling temperature. With suite 0 is greedy decoding."""
    thinking_budgets: Annotated[str | None, BUDGETS] = None
    """Also measure greedy accuracy at each of these thinking budgets, such as 0,64,128,256, and how well the budget controls and scales
    it (docs/thinking.md)."""
    figure: Path | None = None
    """.png, .svg or .pdf file to draw the accuracy over the thinking tokens at thinking_budgets in."""
    against: str | None = None
    """Also report the problems that share a run of words with this data set, such as the one that was trained on."""
    ngram: Annotated[int, at_least(1)] = NGRAM
    """Length of such a run, in words."""
    out: Path | None = None
    """JSON file to write the results to. With suite: the folder of completions and results, from which a further call goes on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.suite is None:
            self._require_no_suite()
        if self.figure is None:
            return
        require_writable("figure", self.figure)
        if self.figure.suffix not in FIGURES:
            raise UserError(f"figure is {str(self.figure)!r}: it must end in {', '.join(FIGURES)}; rename it")
        if self.thinking_budgets is None:
            raise UserError(
                f"figure is {str(self.figure)!r}: it shows several thinking budgets, and there are none; set thinking_budgets, or leave it out"
            )

    def require_out(self) -> None:
        if self.suite is None:
            super().require_out()
        elif self.out is None or (self.out.exists() and not self.out.is_dir()):
            raise UserError(
                f"out is {str(self.out)!r}: a suite writes its results to a folder; name a new one, or that of an earlier call"
            )

    def _require_no_suite(self) -> None:
        if self.temperature == 0:
            raise UserError(f"temperature is {self.temperature}: it must be {ABOVE_0.possible}")
        if self.suite_files is not None:
            raise UserError(
                f"suite_files is {str(self.suite_files)!r}: there is no suite; name sets with suite, or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class CensusOptions(SamplingOptions):
    """Options of `plumbline census`. For a checkpoint of a run, None takes the run's own value where the help says so."""

    dataset: str
    """Problems, named as in training."""
    split: str = "train"
    """Split of a hub data set."""
    prompt_column: str | None = None
    """Column of the question. If not given, it is found by its usual names."""
    answer_column: str | None = None
    """Column of the reference answer. If not given, it is found by its usual names."""
    system_column: str | None = None
    """Column of a row's own system message. If not given, it is "system" or "system_prompt", where there is one."""
    samples: Annotated[int, at_least(1)] = 8
    """Completions sampled of each problem."""
    out: Path | None = None
    """.jsonl file to write the problems to, with their pass rates. It is a data set for --dataset of a run with --difficulty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and self.out.suffix != ".jsonl":
            raise UserError(f"out is {str(self.out)!r}: it must end in .jsonl, to be read as a data set; rename it")


@dataclass(frozen=True, kw_only=True)
class TryRewardOptions:
    """Options of `plumbline try-reward`."""

    reward: tyro.conf.Positional[tuple[str, ...]]
    """Rewards, named as for a run: file.py:function, module:function, math, boxed ..., each also with =weight."""
    dataset: str
    """Problems, named as in training."""
    dataset_config: str | None = None
    """Configuration of a hub data set that has several."""
    split: str = "train"
    """Split of a hub data set."""
    prompt_column: str | None = None
    """Column of the question. If not given, it is found by its usual names."""
    answer_column: str | None = None
    """Column of the reference answer. If not given, it is found by its usual names."""
    size: Annotated[int, at_least(1)] = 20
    """Number of problems, the first ones."""
    model: str | None = None
    """Also try ten samples of this model: tiny, a folder in Hugging Face format or a hub name."""
    max_tokens: Annotated[int, at_least(1)] = 256
    """Longest sample, in tokens."""
    deadline: Annotated[float, POSITIVE] = 2.0
    """Seconds for one call of a reward function."""
    grading: Annotated[tuple[str, ...], GRADING] = ()
    """How math answers are compared, as option=value; docs/grading.md lists the options."""
    allow_unsafe_code: bool = False
    """Run generated programs even where this machine cannot sandbox them."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=TryRewardOptions)
        if not self.reward:
            raise UserError("reward is missing: name one, such as keyword.py:reward")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Options of `plumbline plan`. Those of a run mean the same as there."""

    model: str
    """tiny, qwen2.5-0.5b, -1.5b, -3b, -7b, -32b, qwen3-0.6b, -1.7b, -4b, -8b, a config.json or its folder, or a hub name that is in
    the cache."""
    algorithm: str | None = None
    """Name of an algorithm; docs/algorithms.md lists them. Default: the model's, as in a run."""
    value: CriticSource | None = None
    """PPO's critic: a value head on the policy's trunk ("shared"), or a model of its own ("separate"). Default by algorithm."""
    kl_weight: float | None = None
    """Weight of the KL penalty; with 0 no reference is kept. Default by algorithm."""
    teacher: str | None = None
    """A teacher, named as model is, or the address of a server, which takes nothing here."""
    lora_rank: int = 0
    """Rank of the LoRA adapters; 0 trains all weights."""
    group_size: int = 8
    """Completions per problem."""
    problems_per_step: Annotated[int, at_least(1)] = 32
    """Problems per step, over all GPUs."""
    prompt_length: Annotated[int, at_least(1)] = 512
    """Tokens of each prompt."""
    completion_length: Annotated[int, at_least(2)] = 1024
    """Tokens of each completion. Give the longest for the peak memory."""
    token_budget: int | Literal["auto"] = "auto"
    """Tokens in one forward pass. "auto": 8192, or with card what a run would choose there."""
    dtype: DType = "bfloat16"
    """Data type of the computation; bfloat16 is autocast over float32 weights."""
    head_dtype: HeadDType = "auto"
    """Data type of the output layer. "auto" is dtype."""
    gradient_checkpointing: bool | None = None
    """Recompute activations in the backward pass. Default: off, or with card as a run would choose there."""
    lora_base: BaseDType = "auto"
    """Data type of the frozen weights under the adapters. "auto" is dtype; nf4 is 4 bits (QLoRA)."""
    reference_dtype: ReferenceDType = "auto"
    """Data type of the reference model's weights. "auto" is dtype."""
    optimizer: OptimizerName = "adamw"
    """adamw-8bit stores its moments in 8 bits."""
    gradient_dtype: DType = "float32"
    """bfloat16 halves the memory of the gradients."""
    offload: Offload = "none"
    """What is kept in the host's memory while it is not needed: the reference, the optimizer's moments, or all, both of them."""
    sampler_rows: int | Literal["auto"] = "auto"
    """Completions that the embedded engine decodes at once. "auto": 1024, or with card as many as fit."""
    gpus: Annotated[int, at_least(1)] = 1
    """GPUs that share the problems of a step."""
    sharding: Literal["none", "full", "offload"] = "none"
    """full spreads weights, gradients and optimizer state over the GPUs (FSDP2); offload also keeps them in the host's memory."""
    sampler: Literal["torch", "vllm-server"] = "torch"
    """The embedded engine on the same GPUs, or vLLM servers on other GPUs."""
    card: float | str | None = None
    """A card by its GiB or its name: 4090, a100-40, a100-80, h100, h200, b200. Also prints the largest sizes that fit it."""
    dry_run: bool = True
    """Also run the update itself on tensors without contents, to count the memory that it holds."""

    def __post_init__(self) -> None:
        require_possible(self, declared_in=PlanOptions)
        if self.card is not None and not self.gib > 0:
            raise UserError(
                f"card is {self.card}: it must be more than 0, the GiB of one card, or one of {', '.join(CARDS)}; give 80, for instance"
            )
        longest = self.prompt_length + self.completion_length - 1
        if self.token_budget != "auto" and longest > self.token_budget:
            raise UserError(
                f"token_budget is {self.token_budget}: one sequence of prompt_length {self.prompt_length} and completion_length "
                f"{self.completion_length} has {longest} tokens, and must fit one forward pass; raise token_budget to at least that"
            )
        if self.gpus > self.problems_per_step:
            raise UserError(
                f"gpus is {self.gpus}: it must be at most problems_per_step, {self.problems_per_step}, for each to have a problem; "
                "lower it"
            )
        if self.shards and self.gpus == 1:
            raise UserError(
                f"sharding is {self.sharding!r}: there is one GPU to shard over; set gpus to at least 2, or sharding none"
            )

    @property
    def shards(self) -> bool:
        return self.sharding != "none"

    @property
    def gib(self) -> float:
        """Memory of the card in GiB; 0 for an unknown name."""
        name = f"{self.card:g}" if isinstance(self.card, float | int) else str(self.card).lower()
        if name in CARDS:
            return CARDS[name]
        try:
            return float(name)
        except ValueError:
            return 0.0

    @property
    def own_problems(self) -> int:
        """Problems of the GPU that has most of them."""
        return -(-self.problems_per_step // self.gpus)
