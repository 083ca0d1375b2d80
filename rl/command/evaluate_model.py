"""`plumbline evaluate`: accuracy, pass@k and maj@k of a model on a data set, with confidence intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import comb
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from rewards.errors import UserError
from rewards.extract import AnswerForm, Reading
from rewards.math_answer import MathVerifier
from rewards.math_policy import MathPolicy
from rewards.reward_spec import need_references, parse_rewards
from rewards.score import Outcome, verify
from rewards.verifiers import REWARD, VerifierOptions, Verifiers
from rl.capacity.account import ROUNDED
from rl.capacity.choose import rows_with_room
from rl.capacity.cost import FLOAT32, ModelCost
from rl.command.estimate import Estimate
from rl.command.thinking_budgets import budget_estimates, draw_budgets
from rl.policy.families import CAUSAL, family_of
from rl.policy.load import context_length, require_folder
from rl.policy.merge import load_merged
from rl.processes.runtime import Runtime, cores_per_process
from rl.run.build import tool_rollout, with_environments
from rl.run.evaluate import VOTED_ON, is_right, right_by_vote
from rl.run.load_data import Report, gradable, load_held_out, log, require_room, rewarded, within_limit
from rl.run.setup import tiny_base
from rl.settings.checks import THINKING_OPTIONS
from rl.settings.config import RunConfig
from rl.settings.defaults import MAX_ROWS, TINY, TINY_TASKS, resolved_dtype
from rl.settings.options import NO_BUDGET, EvaluateOptions, SamplingOptions
from rl.settings.resolve import model_defaults, resolve
from rl.settings.written_config import with_list_of_datasets
from rl.view.progress import Progress
from rollout.budget_forcing import BudgetForcing, rollout_within
from rollout.chat_template import choose_template
from rollout.collect import Collector
from rollout.contamination import contaminated
from rollout.dataset_names import HubName
from rollout.environment import Environments
from rollout.problems import is_on_hub, load_problems
from rollout.prompts import PromptRenderer
from rollout.records import Problem, RolloutGroup, style_of_rewards
from rollout.rollouts import one_shot
from rollout.sampler import Sampler, SamplingParams
from rollout.thinking_budget import parse_budgets
from rollout.turn import stop_token_ids, turn_end_strings, vocabulary_size

Options = TypeVar("Options", bound=SamplingOptions)
# How the greedy completions of math problems are also read, beside as the run reads them.
MEASURED_FORMS: dict[Reading, str] = {"boxed": "only \\boxed{}", "flexible": "flexible extract"}


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k), the probability that at least one of k samples is correct: unbiased (arXiv 2107.03374, eq. 1)."""
    return 1.0 - comb(num_samples - num_right, k) / comb(num_samples, k)


def evaluate_model(options: EvaluateOptions, progress: Progress) -> dict[str, Estimate | None]:
    """Estimates by measure: greedy accuracy with lenient and strict extraction, pass@k at powers of two, maj@n, share of truncated answers;
    with thinking_budgets also the greedy accuracy at each budget and the metrics of s1."""
    if options.suite is not None:
        raise UserError(
            f"suite is {' '.join(options.suite)!r}: the command `plumbline evaluate` measures it; use that, or leave it out"
        )
    require_folder(options.model)
    run = run_of(options)
    options = with_values_of(run, options)
    options, environments = with_environments(options)
    problems, where = problems_of(options, run, progress.message)
    progress.message(f"{options.model} on {where}")
    if options.against is not None:
        progress.message(describe_contamination(problems, options))
    budgets = () if options.thinking_budgets is None else parse_budgets(options.thinking_budgets)
    budget = options.thinking_budget or (str(budgets[-1]) if budgets else None)
    if budget is not None and (options.tools or options.environment):
        option = "tools" if options.tools else "environment"
        raise UserError(
            f"{option} is {getattr(options, option)!r}: a thinking budget bounds one turn, and here there are several; leave one of them out, or "
            "set thinking_budget none where the checkpoint's run has one"
        )
    asked = replace(options, thinking_budget=budget)
    with opened(asked, environments, problems, "held-out", progress) as (collector, problems):
        forcing = collector.rollout
        if budgets:  # below the largest, one without room for a Wait is measured without Waits
            assert isinstance(forcing, BudgetForcing)
            forcing.at(budgets[-1]).require_room(collector.params.max_tokens)
        if options.thinking_budget is None and isinstance(forcing, BudgetForcing):  # the budgets are measured apart
            collector = replace(collector, rollout=one_shot)
        progress.start(f"{len(problems)} problems, greedy")
        greedy = replace(collector, params=replace(collector.params, temperature=0.0), group_size=1)
        grading = MathPolicy.parse(options.grading or ())
        found = greedy_estimates(greedy.collect(problems, step=0).groups, grading, num_workers=cores_per_process())
        if options.samples > 0:
            progress.start(f"{len(problems)} problems, {options.samples} samples of each")
            found |= sample_estimates(collector.collect(problems, step=0).groups, options.samples, options.answer_form)
        if budgets:
            assert isinstance(forcing, BudgetForcing)
            found |= budget_estimates(replace(greedy, rollout=forcing), forcing, budgets, problems, progress)
            if options.figure is not None:
                draw_budgets(found, budgets, options.figure)
    return found


def with_values_of(run: Mapping[str, Any], options: Options) -> Options:
    """The options, with the values of the model's own run where none are given; a thinking budget of "none" is None, and the run's
    phrases then serve only the budgets to measure. run: as run_of returns it."""
    names = ("max_tokens", "answer_form", "prompt_style", "system_prompt", "max_prompt_tokens", "stop_strings")
    names += ("grading", "reward", "verifier_deadline")
    names += ("tools", "environment", "tool_format", "max_turns", "tool_deadline", "tool_workers", "python_state")
    if options.thinking_budget == NO_BUDGET:
        options = replace(options, thinking_budget=None)
        measures_budgets = isinstance(options, EvaluateOptions) and options.thinking_budgets is not None
        names += THINKING_OPTIONS if measures_budgets else ()
    else:
        names += ("thinking_budget", *THINKING_OPTIONS)
    return replace(options, **{name: run.get(name) for name in names if getattr(options, name) is None})


@contextmanager
def opened(
    options: SamplingOptions,
    environments: Environments | None,
    problems: Sequence[Problem],
    which: str,
    progress: Progress,
    packages: tuple[str, ...] = (),
) -> Iterator[tuple[Collector, list[Problem]]]:
    """A collector for the problems that can be graded and whose prompts are short enough, and these problems. It is closed at the end of
    the block. which: what messages call the problems. packages: what programs and their tests may import beside the standard library."""
    dtype = resolved_dtype(options.dtype, options.model, options.device)
    runtime = Runtime.start(dtype=dtype, device=options.device)
    verifiers = Verifiers(
        VerifierOptions(
            num_workers=runtime.cores,
            deadline=options.verifier_deadline or VerifierOptions.deadline,
            answer_form=options.answer_form,
            grading=MathPolicy.parse(options.grading or ()),
            allow_unsafe_code=options.allow_unsafe_code,
            packages=packages,
            rewards=parse_rewards(options.reward or ()),
            has_environment=environments is not None,
        )
    )
    try:
        problems = gradable(rewarded(problems, options.reward or ()), which, verifiers, progress)
        collector, problems = make_collector(options, problems, verifiers, runtime, progress, which, environments)
        yield collector, problems
        collector.close()
    finally:
        verifiers.close()
        runtime.close()


def run_of(options: SamplingOptions) -> dict[str, Any]:
    """config.json of the run that the model is a checkpoint of, or the defaults of the tiny model; {} for other models."""
    if options.model == TINY:
        return resolve(RunConfig(dataset=(options.dataset or TINY_TASKS[0],)), "cpu").as_json()
    written = Path(options.model).parent.parent / "config.json"
    found = json.loads(written.read_text(encoding="utf-8")) if written.is_file() else {}
    return with_list_of_datasets(found) if "problems_per_step" in found else {}


def problems_of(
    options: EvaluateOptions, run: Mapping[str, Any], report: Report = log.warning
) -> tuple[list[Problem], str]:
    """The problems to evaluate on and a description: what the run held out of its own data, or else all of the split."""
    if options.dataset is not None and [options.dataset] != run.get("dataset"):
        problems = load_problems(
            options.dataset,
            config=options.dataset_config,
            split=options.split,
            needs_reference=need_references(options.reward or ()),
            has_environment=bool(options.environment),
            report=report,
        )
        has_split = is_on_hub(options.dataset) and HubName.read(options.dataset).split is None
        return problems[: options.size], options.dataset + (f", {options.split}" if has_split else "")
    if not run:
        raise UserError(
            f"dataset is None: {options.model!r} is not a checkpoint of a run, which would name one; add --dataset"
        )
    settings = resolve(RunConfig.from_json(run), "cpu")
    problems = load_held_out(settings, report)
    dataset = settings.eval_dataset or " ".join(settings.dataset)
    if settings.has_eval_data and is_on_hub(dataset):
        where = f"{dataset}, {settings.eval_split or 'test'}"
    else:
        where = f"the {len(problems)} problems of {dataset} that runs hold out"
    return problems[: options.size], where


def make_collector(
    options: SamplingOptions,
    problems: Sequence[Problem],
    verifiers: Verifiers,
    runtime: Runtime,
    progress: Progress,
    which: str = "held-out",
    environments: Environments | None = None,
) -> tuple[Collector, list[Problem]]:
    """A collector for the problems whose prompts are short enough, and these problems. which: what messages call them."""
    source = options.model
    if source == TINY:
        source = str(tiny_base(str(options.dataset), verifiers, runtime, progress))
    is_adapted = (Path(source) / "adapter_config.json").is_file()
    family = CAUSAL if is_adapted else family_of(source)
    model, tokenizer = load_merged(Path(source)) if is_adapted else family.load(source, runtime.device)
    model = model.to(runtime.device)  # pyright: ignore[reportArgumentType]  the stubs lose `self`
    choose_template(tokenizer, options.chat_template)
    style = options.prompt_style or style_of_rewards(parse_rewards(options.reward or ()), options.answer_form)
    tools = tool_rollout(options, tokenizer, environments)
    renderer = PromptRenderer(
        tokenizer,
        style=style,
        system_prompt=options.system_prompt,
        answer_form=options.answer_form,
        tools_of=tools.schemas_of if tools else lambda problem: (),
        report=progress.message,
    )
    max_tokens = options.max_tokens or model_defaults(options.model, str(options.dataset))["max_tokens"]
    problems = within_limit(renderer, problems, which, options.max_prompt_tokens, progress.message)
    context, vocabulary = context_length(model), vocabulary_size(model)
    longest = require_room(renderer, problems, max_tokens, context=context, vocabulary=vocabulary)
    # With a thinking budget a later turn's prompt has what was thought, and is no other row's.
    thinks = options.thinking_budget is not None
    lengths = (longest if thinks else longest - max_tokens, max_tokens)
    group_size = 1 if thinks else max(1, options.samples)
    sampler: Sampler
    if options.sampler == "torch":
        sampler = family.sampler(
            model,
            tokenizer,
            decode_dtype=getattr(torch, runtime.dtype),
            autocast=runtime.autocast,
            max_rows=rows_at_once(model, runtime, *lengths, group_size),
        )
    else:
        # Importing it takes ten seconds, and vLLM is optional.
        from rollout.vllm_sampler import VLLMOptions, VLLMSampler

        engine = VLLMOptions(dtype=runtime.dtype, max_length=longest, key_values=ModelCost.of(model).key_value)
        folder = model.config._name_or_path if is_adapted else source
        sampler = VLLMSampler(folder, tokenizer, stop_token_ids(model, tokenizer), engine)
        sampler.update_weights(model.named_parameters(remove_duplicate=False), version=0)
    of_tools = tools.stop_strings if tools else ()
    stop_strings = (*(options.stop_strings or ()), *of_tools, *turn_end_strings(tokenizer))
    params = SamplingParams(max_tokens=max_tokens, temperature=options.temperature, stop_strings=stop_strings)
    collector = Collector(
        sampler=sampler,
        verifiers=verifiers,
        renderer=renderer,
        params=params,
        group_size=max(1, options.samples),
        run_seed=options.seed,
        rollout=tools or rollout_within(options.thinking(), model, renderer, params, problems[0]),
        call_threads=tools.threads if tools else 0,
    )
    return collector, problems


def rows_at_once(
    model: PreTrainedModel, runtime: Runtime, prompt_length: int, completion_length: int, group_size: int
) -> int:
    """Completions to decode at once: as many as fit a GPU beside the model and the engine's copy in 16 bits; on a CPU MAX_ROWS."""
    if runtime.device.type != "cuda":
        return MAX_ROWS
    cost, width = ModelCost.of(model), ROUNDED if runtime.dtype == "bfloat16" else FLOAT32
    copied = ROUNDED * cost.all_parameters if runtime.dtype == "bfloat16" else 0
    return rows_with_room(
        cost,
        vocabulary_size(model),
        runtime.free_memory() - copied,
        prompt_length=prompt_length,
        completion_length=completion_length,
        group_size=group_size,
        width=width,
    )


def greedy_estimates(
    groups: Sequence[RolloutGroup], grading: MathPolicy, *, num_workers: int
) -> dict[str, Estimate | None]:
    """Accuracy and truncation of greedy completions. Of math problems also with strict extraction (only \\boxed{}), and with the
    flexible extraction that is usual for base models (rewards.extract.answer_by_form)."""
    rollouts = [group.rollouts[0] for group in groups]
    found = {"greedy accuracy": Estimate.of([is_right(r) for r in rollouts if r.is_graded])}
    if any(r.problem.verifier == REWARD for r in rollouts):
        found["greedy reward"] = Estimate.of(
            [r.score.value for r in rollouts if r.score.value is not None], is_share=False
        )
    math = [r for r in rollouts if r.problem.verifier == "math"]
    if math:
        for form, name in MEASURED_FORMS.items():
            verifier = MathVerifier(form=form, policy=grading, num_workers=num_workers)
            texts, problems = [r.completion.text for r in math], [r.problem for r in math]
            scores = verify(verifier, texts, [p.reference for p in problems], [p.question for p in problems])
            verifier.close()
            right = [s.outcome is Outcome.CORRECT for r, s in zip(math, scores, strict=True) if r.is_graded]
            found[f"greedy accuracy, {name}"] = Estimate.of(right)
    found["cut by max_tokens"] = Estimate.of([r.cut_short for r in rollouts])
    return found


def sample_estimates(
    groups: Sequence[RolloutGroup], num_samples: int, answer_form: AnswerForm | None = None
) -> dict[str, Estimate | None]:
    """pass@k and maj@n over the graded samples of each problem. pass@k leaves out problems with fewer than k graded samples."""
    graded = [[r for r in group.rollouts if r.is_graded] for group in groups]
    found: dict[str, Estimate | None] = {}
    for k in sorted({2**i for i in range(num_samples.bit_length())} | {num_samples}):
        found[f"pass@{k}"] = Estimate.of(
            [pass_at_k(len(rollouts), sum(map(is_right, rollouts)), k) for rollouts in graded if len(rollouts) >= k]
        )
    voted = [g for g, rollouts in zip(groups, graded, strict=True) if rollouts and g.problem.verifier in VOTED_ON]
    if voted:
        found[f"maj@{num_samples}"] = Estimate.of([right_by_vote(group, answer_form) for group in voted])
    return found


def describe_contamination(problems: Sequence[Problem], options: EvaluateOptions) -> str:
    assert options.against is not None
    others = load_problems(options.against, split="train", needs_reference=False)
    shared = contaminated(problems, others, options.ngram)
    shown = "".join(f"\n  {name}: {words}" for name, words in list(shared.items())[:5])
    return (
        f"{len(shared)} of {len(problems)} problems share {options.ngram} words in a row with {options.against}{shown}"
    )


def describe(found: dict[str, Estimate | None]) -> str:
    width = max(map(len, found))
    lines = [f"{name:<{width}}  {'not measured' if x is None else x}" for name, x in found.items()]
    return "\n".join([*lines, "In brackets: 95 % confidence intervals, by bootstrap over problems."])


def as_json(found: dict[str, Estimate | None]) -> str:
    return json.dumps({name: None if x is None else asdict(x) for name, x in found.items()}, indent=2)
