"""Chooses the "auto" options that cost memory by the prediction of rl/capacity/account.py, or refuses a run that does not fit.

On a GPU it takes the fastest gradient_checkpointing, token_budget and sampler_rows that fit. On a CPU, where memory can be swapped and
the prediction is coarser, it refuses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from math import ceil
from typing import Any

from rewards.errors import UserError
from rl.capacity.account import CANDIDATE_BYTES, CUDA_CONTEXT, FRAGMENTATION, GIB, ROUNDED, Account
from rl.capacity.cost import FLOAT32, ModelCost, key_value_bytes
from rl.settings.defaults import MAX_ROWS

MOST_TOKENS = 16_384  # larger matrix products are no faster per token
# Each part of a split group runs the prompt again; with fewer tokens per part that costs more than checkpointing.
LEAST_TOKENS = 4096


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes. available: what this run may use, its present allocations included. total: the device's whole memory."""

    available: float
    total: float

    @staticmethod
    def of_card(gib: float) -> DeviceMemory:
        """An unused card."""
        return DeviceMemory(gib * GIB - CUDA_CONTEXT, gib * GIB)


def choose(account: Account, memory: DeviceMemory) -> Account:
    """The account with all "auto" options chosen. Raises UserError, with options that would fit, where none fits.

    Gradient checkpointing is chosen only where no token budget down to LEAST_TOKENS fits without it; then the largest budget that fits.
    """
    if account.device != "cuda":
        return on_a_cpu(account, memory)
    require_vllms_share(account, memory)
    found = fitting(account, memory)
    if found is None:
        raise UserError(refusal(account, memory))
    return found


def fitting(account: Account, memory: DeviceMemory) -> Account | None:
    """The fastest update that fits, with as many sampler rows as fit beside it; None where nothing fits."""
    return next((a for update in updating(account) for a in sampling(update) if fits(a, memory)), None)


def fits(account: Account, memory: DeviceMemory) -> bool:
    """vLLM in this process frees its share during an update, except with one_step_ahead, where it samples at the same time."""
    vllms = account.run.vllm_memory * memory.total if account.engine == "vllm" else 0.0
    update = account.needed(account.peak_of_update()) + account.run.one_step_ahead * vllms
    return max(update, account.needed(account.peak_of_sampling()) + vllms) <= memory.available


def updating(account: Account) -> Iterator[Account]:
    """Accounts for every checkpointing and token budget that the options leave open, the fastest first."""
    for checkpointed, tokens in settings(account):
        yield account.with_options(gradient_checkpointing=checkpointed, token_budget=tokens)


def sampling(account: Account) -> Iterator[Account]:
    rows = account.run.sampler_rows
    while account.asked.sampler_rows == "auto" and account.engine == "torch" and rows > account.least_rows:
        yield account.with_options(sampler_rows=rows)
        rows //= 2
    yield account.with_options(sampler_rows=max(rows, account.least_rows))


def rows_with_room(
    cost: ModelCost,
    vocabulary: int,
    free: float,
    *,
    prompt_length: int,
    completion_length: int,
    group_size: int,
    width: int,
) -> int:
    """Number of completions that the embedded engine can decode at once in `free` bytes without training: a power of two, at most
    MAX_ROWS, or a group if that is more."""

    def needed(rows: int) -> float:
        groups = ceil(rows / group_size)
        keys = key_value_bytes(cost, groups, rows, prompt_length, completion_length, width)
        return FRAGMENTATION * (keys + CANDIDATE_BYTES * rows * vocabulary)

    rows = MAX_ROWS
    while rows > group_size and needed(rows) > free:
        rows //= 2
    return max(rows, group_size)


def settings(account: Account) -> Iterator[tuple[bool, int]]:
    asked, sizes = account.asked.gradient_checkpointing, list(budgets(account))
    large = [tokens for tokens in sizes if tokens >= LEAST_TOKENS] or sizes[:1]
    without, again = [(False, tokens) for tokens in large], [(True, tokens) for tokens in sizes]
    if asked is None:
        return chain(without, again)
    return iter(again) if asked else ((False, tokens) for tokens in sizes)


def budgets(account: Account) -> Iterator[int]:
    """Token budgets: the given one, or whole groups, then parts of a group, down to one completion with its prompt."""
    prompt, own, size = account.prompt_length, account.completion_length - 1, account.group_size
    asked = account.asked.token_budget
    if asked != "auto":
        yield from [asked] if asked >= prompt + own else []
        return
    group = prompt + size * own
    groups = max(1, min(account.problems, MOST_TOKENS // group))
    while groups:
        yield groups * group
        groups //= 2
    while size > 1:
        size = (size + 1) // 2
        yield prompt + size * own


def with_defaults(account: Account) -> Account:
    """The account with fixed defaults in place of "auto", for a CPU and for unknown memory."""
    run, one = account.run, account.prompt_length + account.completion_length - 1
    is_open = account.asked.token_budget == "auto"
    return account.with_options(
        gradient_checkpointing=run.gradient_checkpointing,
        token_budget=max(run.token_budget, one) if is_open else run.token_budget,
        sampler_rows=run.sampler_rows,
    )


def on_a_cpu(account: Account, memory: DeviceMemory) -> Account:
    found = with_defaults(account)
    if account.asked.gradient_checkpointing is None and found.peak_of_update() > memory.available:
        return found.with_options(gradient_checkpointing=True)
    return found


# Options that need less memory, the cheapest first; the open options are chosen anew for each.
REMEDIES: tuple[dict[str, Any], ...] = (
    {},
    {"dtype": "bfloat16"},
    {"reference_dtype": "bfloat16"},
    {"optimizer": "adamw-8bit"},
    {"offload": "optimizer"},
    {"offload": "all"},
    {"gradient_dtype": "bfloat16"},
    {"optimizer": "adamw-8bit", "gradient_dtype": "bfloat16"},
    {"kl_weight": 0.0},
    {"kl_weight": 0.0, "optimizer": "adamw-8bit", "gradient_dtype": "bfloat16"},
    {"offload": "optimizer", "gradient_dtype": "bfloat16"},
    {"offload": "all", "gradient_dtype": "bfloat16"},
    {"lora_base": "bfloat16"},
    {"lora_base": "nf4"},
    {"lora_rank": 16, **{name: "auto" for name in ("lora_base", "reference_dtype")}, "offload": "none"},
    {"lora_rank": 16, "lora_base": "nf4", "reference_dtype": "auto", "offload": "none"},
)
OPEN = {"gradient_checkpointing": None, "token_budget": "auto", "sampler_rows": "auto"}
SHARDED = {"dtype", "kl_weight", *OPEN}  # of these, those that sharded weights support
MAX_REMEDIES = 3  # shown in a message


def remedies(account: Account, memory: DeviceMemory) -> Iterator[tuple[dict[str, Any], Account]]:
    """Changes of options with which the run fits, and its account with them; none that contains an earlier one."""
    asked, named = account.asked, []
    for remedy in REMEDIES:
        wanted = {**OPEN, **remedy}
        changes = {name: value for name, value in wanted.items() if getattr(asked, name) != value}
        if not changes or any(known.items() <= changes.items() for known in named):
            continue
        if account.shards > 1 and not set(changes) <= SHARDED:
            continue
        try:
            changed = account.with_options(**changes)
        except UserError:  # an invalid combination
            continue
        if (found := fitting(changed, memory)) is not None:
            named.append(changes)
            yield changes, found


def described(account: Account, memory: DeviceMemory) -> str:
    """The choice as a line of text."""
    run, again = account.run, "on" if account.run.gradient_checkpointing else "off"
    rows = f", {account.rows:,} completions decoded at once" if account.engine == "torch" else ""
    return (
        f"memory: an update takes about {account.peak_of_update() / GIB:.1f} GiB and sampling {account.peak_of_sampling() / GIB:.1f} of "
        f"the {memory.available / GIB:.1f} available: token_budget {run.token_budget:,}, gradient checkpointing {again}{rows}"
    )


def refusal(account: Account, memory: DeviceMemory) -> str:
    least = list(sampling(min(updating(account), key=Account.peak_of_update)))[-1]
    beside = f", beside vLLM's {account.run.vllm_memory * memory.total / GIB:.1f}" if account.engine == "vllm" else ""
    said = (
        f"model is {account.run.model!r}: this run does not fit. An update needs at least {least.peak_of_update() / GIB:.1f} "
        f"GiB and sampling {least.peak_of_sampling() / GIB:.1f}{beside}, with the allocator's fragmentation "
        f"{least.needed(least.peak()) / GIB:.1f}, and {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB are available"
    )
    fitting = [
        f"{as_options(changes)} ({a.needed(a.peak()) / GIB:.1f} GiB)"
        for changes, a in islice(remedies(account, memory), MAX_REMEDIES)
    ]
    if not fitting:
        return f"{said}. No option is enough: use a smaller model, a larger GPU, or several (docs/scale.md)"
    return f"{said}. It would fit with {', or with '.join(fitting)}"


def as_options(changes: dict[str, Any]) -> str:
    """The options as they are typed on the command line."""
    texts = {
        name: "None" if value is None else f"{value:g}" if isinstance(value, float) else value
        for name, value in changes.items()
    }
    return " ".join(f"--{name.replace('_', '-')} {text}" for name, text in texts.items())


def require_vllms_share(account: Account, memory: DeviceMemory) -> None:
    """Raises UserError unless vllm_memory holds vLLM's weights and one sequence's keys and values, and fits beside the trainer."""
    if account.engine != "vllm":
        return
    share, total = account.run.vllm_memory, memory.total
    width = ROUNDED if account.run.sampler_dtype == "bfloat16" else FLOAT32
    lengths = (account.prompt_length, account.completion_length)
    weights, keys = width * account.cost.all_parameters, key_value_bytes(account.cost, 1, 1, *lengths, width)
    least = FRAGMENTATION * (weights + keys) / total
    most = (memory.available - account.kept()) / total
    if least <= share <= most:
        return
    what = f"vllm_memory is {share:g}, {share * total / GIB:.1f} of the GPU's {total / GIB:.1f} GiB"
    needs = f"vLLM's weights take {weights / GIB:.1f} and the keys and values of one sequence {keys / GIB:.2f}"
    beside = f"beside what the trainer keeps {most * total / GIB:.1f} are free"
    if least <= most:
        raise UserError(f"{what}: {needs}, {beside}; give {ceil(100 * least) / 100:.2f} to {int(100 * most) / 100:.2f}")
    raise UserError(
        f"{what}: {needs}, {beside}, so no share is enough; use --sampler torch, or vllm-server on another GPU"
    )
