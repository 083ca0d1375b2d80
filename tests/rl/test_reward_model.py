"""A reward model: its scores, what becomes of them, and its training on labels of the rules."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)

import rl.update.reward_training
from rewards.errors import UserError
from rewards.score import Outcome, Score
from rl.policy.reward_model import PART, RewardModel, rule_label
from rl.processes.runtime import Runtime
from rl.run.tiny import tiny_tokenizer
from rl.update.reward_training import BATCH, Example, RewardTrainer, batches_with_replay, labelled
from rl.update.step_metrics import reward_model_agreement
from rollout.records import Completion, FinishReason, Problem, Rollout, RolloutGroup
from rollout.steps import steps_of

CPU = torch.device("cpu")
ANSWERS = ("2", "\\boxed{2}", "1+1=2\n2+2=5\n\\boxed{5}", "so it must be two!", "!")
# Float32 sums over rows of another width: logits near 10 whose terms are rounded to 6e-8 each.
CLOSE = 1e-4


def with_head(model: Path, folder: Path, num_labels: int = 1, tokenizer: Path | None = None, **changed: object) -> Path:
    """A classification model with the weights of `model` and a random head, in this folder. tokenizer: its folder; the tiny model's by
    default. changed: what its config.json has otherwise."""
    auto = AutoModelForSequenceClassification if num_labels == 1 else AutoModelForTokenClassification
    torch.manual_seed(3)
    made = auto.from_pretrained(model, num_labels=num_labels)
    torch.nn.init.normal_(made.score.weight)
    for name, value in changed.items():
        setattr(made.config, name, value)
    made.save_pretrained(folder)
    of = tiny_tokenizer() if tokenizer is None else AutoTokenizer.from_pretrained(tokenizer)
    of.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scorer(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores answers."""
    return with_head(model, tmp_path_factory.mktemp("scorer"))


@pytest.fixture(scope="session")
def step_scorer(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores the steps of answers."""
    return with_head(model, tmp_path_factory.mktemp("step-scorer"), num_labels=2)


def answered(text: str, outcome: Outcome = Outcome.WRONG, value: float | None = 0.0, seed: int = 0) -> Rollout:
    problem, tokenizer = Problem(id="p", prompt="1+1=", reference="2"), tiny_tokenizer()
    ids = tuple(tokenizer(text).input_ids)
    completion = Completion(
        token_ids=ids,
        sampler_logprobs=(-1.0,) * len(ids),
        finish_reason=FinishReason.STOP,
        policy_version=0,
        seed=seed,
        text=text,
    )
    steps = steps_of(tokenizer, problem, completion)
    parts = {} if value is None else {"math": value}
    return Rollout(
        problem=problem,
        completion=completion,
        score=Score(value, outcome, parts),
        step_rewards=steps.rewards,
        step_ends=steps.ends,
    )


def own_logits(model: PreTrainedModel, token_ids: tuple[int, ...]) -> torch.Tensor:
    """The model's own forward of one text, without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([token_ids])).logits[0]


@pytest.mark.parametrize("token_budget", [1, 40, 8192])
@pytest.mark.parametrize("pad", [257, None])
@pytest.mark.parametrize("template", [True, False])
def test_batched_scores_are_the_models_own(
    token_budget: int, pad: int | None, template: bool, model: Path, tmp_path: Path
) -> None:
    """Also where its config names no padding: then "!", the token 0, is the last of two of the texts."""
    loaded = RewardModel.load(str(with_head(model, tmp_path, pad_token_id=pad)), CPU, token_budget=token_budget)
    if not template:
        loaded.tokenizer.chat_template = None
    texts = [loaded.read("1+1=", answer) for answer in ANSWERS]
    expected = [own_logits(loaded.model, text.token_ids).item() for text in texts]
    found = loaded.scores(texts)
    assert [len(score) for score in found] == [1] * len(texts)
    assert [score for (score,) in found] == [pytest.approx(x, abs=CLOSE) for x in expected]
    assert max(expected) - min(expected) > 1 and loaded.model.config.pad_token_id == pad


def test_batches_hold_texts_of_about_one_length_within_the_budget(scorer: Path) -> None:
    """The texts have 7, 9, 26, 24 and 7 tokens; 3 rows of 9 are 27."""
    loaded = RewardModel.load(str(scorer), CPU, token_budget=27)
    texts = [loaded.read("1+1=", answer) for answer in ANSWERS]
    assert [len(text.token_ids) for text in texts] == [7, 9, 21, 24, 7]
    assert list(loaded.batches(texts)) == [[0, 4, 1], [2], [3]]


def test_steps_get_the_probability_of_correct_at_their_last_tokens(step_scorer: Path) -> None:
    """The question's "1+1=" and a newline are 5 tokens, and each step 6."""
    loaded = RewardModel.load(str(step_scorer), CPU, weight=0.75)
    first, none = loaded.rewarded([answered(ANSWERS[2]), answered("2")])
    logits = own_logits(loaded.model, loaded.read("1+1=", ANSWERS[2]).token_ids)
    expected = [logits[place].softmax(-1)[1].item() for place in (10, 16)]
    assert abs(expected[0] - expected[1]) > 0.01
    mixed = [0.75 * expected[0] + 0.25, 0.75 * expected[1]]  # the rules give the true line 1 and the false one 0
    assert first.step_rewards == (pytest.approx(mixed[0]), pytest.approx(mixed[1]))
    assert first.step_ends == (5, 11) and first.score.value == 0.0
    assert first.score.parts == {"math": 0.0, PART: pytest.approx(min(expected))}
    assert none == answered("2")


def test_the_reward_is_a_mean_of_model_and_rule_and_the_outcome_the_rules(scorer: Path) -> None:
    """A completion that the rules could not grade stays without a reward."""
    loaded = RewardModel.load(str(scorer), CPU, weight=0.25)
    right, broken = answered("\\boxed{2}", Outcome.CORRECT, 1.0), answered("2", Outcome.CRASHED, None)
    logit = own_logits(loaded.model, loaded.read("1+1=", "\\boxed{2}").token_ids).item()
    found, untouched = loaded.rewarded([right, broken])
    assert found.score.value == pytest.approx(0.25 * logit + 0.75, abs=CLOSE)
    assert found.score.outcome is Outcome.CORRECT
    assert found.score.parts == {"math": 1.0, PART: pytest.approx(logit, abs=CLOSE)}
    assert untouched == broken
    assert loaded.rewarded([broken]) == [broken]


def test_what_the_model_cannot_score_has_no_reward(scorer: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A text of 24 tokens, and scores that are no numbers, are never a 0."""
    loaded = RewardModel.load(str(scorer), CPU)
    assert loaded.longest == 2048
    short, long = answered("2"), answered("so it must be two!", Outcome.CORRECT, 1.0)
    scored, unread = replace(loaded, longest=23).rewarded([short, long])
    assert scored.score.value is not None
    why = "the text has 24 tokens, and the reward model reads at most 23"
    assert unread.score == Score(None, Outcome.CRASHED, {"math": 1.0}, why)
    assert f"1 of 2 answers have no reward: {why}" in caplog.text
    for number in (float("nan"), float("inf")):
        with torch.no_grad():
            loaded.model.get_parameter("score.weight").fill_(number)
        (broken,) = loaded.rewarded([short])
        assert broken.score.value is None and broken.score.outcome is Outcome.CRASHED
        assert broken.score.detail.startswith("the reward model gave ")


def test_agreement_with_the_rules_is_the_share_of_pairs_in_the_right_order() -> None:
    """Correct 2 and 1, wrong 1 and 0: 2 > 1, 2 > 0, 1 > 0 and a tie that counts half, 3.5 of 4. Completions without a label, and without
    the part, are in no pair."""

    def scored(score: float, outcome: Outcome) -> Rollout:
        rollout = answered("2", outcome)
        return replace(rollout, score=replace(rollout.score, parts={PART: score}))

    wrong = [scored(1.0, Outcome.WRONG), scored(0.0, Outcome.NO_ANSWER)]
    right = [scored(2.0, Outcome.CORRECT), scored(1.0, Outcome.CORRECT)]
    others = [scored(9.0, Outcome.UNPARSED), answered("2", Outcome.CORRECT)]
    assert reward_model_agreement([*wrong, *right, *others]) == {"reward_model/auc": 0.875}
    assert reward_model_agreement(right) == reward_model_agreement(wrong) == {"reward_model/auc": None}
    assert reward_model_agreement(others[1:]) == {}


def test_only_a_verdict_is_a_label() -> None:
    """What could not be read, took too long or broke the verifier is neither right nor wrong."""
    labels = {outcome: rule_label(answered("2", outcome)) for outcome in Outcome}
    assert {o for o, label in labels.items() if label is True} == {Outcome.CORRECT}
    assert {o for o, label in labels.items() if label is False} == {Outcome.WRONG, Outcome.NO_ANSWER}
    rollouts = tuple(answered(f"{o.value}", o, seed=i) for i, o in enumerate(Outcome))
    problem = rollouts[0].problem
    group = RolloutGroup(
        problem=problem, prompt_ids=(1,), rollouts=tuple(replace(r, problem=problem) for r in rollouts)
    )
    assert [(e.answer, e.is_correct, e.step, e.question) for e in labelled([group], 7)] == [
        ("correct", True, 7, "1+1="),
        ("wrong", False, 7, "1+1="),
        ("no_answer", False, 7, "1+1="),
    ]


def examples(count: int, step: int) -> list[Example]:
    return [
        Example(question="1+1=", answer=f"{i}", is_correct=i == 2, step=step, seed=hash((i, step)))
        for i in range(count)
    ]


def test_a_tenth_of_each_batch_is_replayed() -> None:
    """Of 64 six; of the last batch, 14 fresh ones, 14 / 9 rounded."""
    fresh, earlier = examples(130, 2), examples(50, 1)
    batches = list(batches_with_replay(fresh, earlier, 0.1, random.Random(0)))
    assert [(len(b), sum(e.step == 1 for e in b)) for b in batches] == [(BATCH, 6), (BATCH, 6), (16, 2)]
    seen = [e for batch in batches for e in batch if e.step == 2]
    assert sorted(seen, key=fresh.index) == fresh and seen != fresh
    assert all(len(set(batch)) == len(batch) for batch in batches)
    few = list(batches_with_replay(fresh, earlier[:4], 0.5, random.Random(0)))
    assert [sum(e.step == 1 for e in b) for b in few] == [4, 4, 4, 4, 2]
    assert [len(b) for b in batches_with_replay(fresh, [], 0.1, random.Random(0))] == [58, 58, 14]


@pytest.fixture
def trainer(scorer: Path) -> Callable[..., RewardTrainer]:
    def make(**options: object) -> RewardTrainer:
        loaded = RewardModel.load(str(scorer), CPU, token_budget=20)  # of seven tokens two in a row
        loaded.model.requires_grad_(True)
        usual = {"learning_rate": 1e-3, "every": 2, "replay": 0.1, "seed": 0}
        return RewardTrainer.of(loaded, Runtime.start(dtype="float32", device="cpu"), **{**usual, **options})  # pyright: ignore

    return make


def test_an_update_is_a_step_on_the_mean_cross_entropy(trainer: Callable[..., RewardTrainer], scorer: Path) -> None:
    """The loss against the formula of each text's own logit, the weights against a plain loop without padding."""
    ours, batch = trainer(), examples(5, 1)
    theirs = AutoModelForSequenceClassification.from_pretrained(scorer)
    # Steps in proportion to the gradient: AdamW makes whole steps of what rounding leaves of one that is 0.
    ours.optimizer, optimizer = (torch.optim.SGD(model.parameters(), 0.1) for model in (ours.model.model, theirs))
    for _ in range(2):
        texts = [ours.model.read(e.question, e.answer).token_ids for e in batch]
        logits = torch.stack([theirs(input_ids=torch.tensor([ids])).logits[0, 0] for ids in texts])
        loss = binary_cross_entropy_with_logits(logits, torch.tensor([float(e.is_correct) for e in batch]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert ours.update(batch) == pytest.approx(loss.item(), rel=1e-5)
    for a, b in zip(ours.model.model.parameters(), theirs.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-6  # gradients of norm 1 in float32


def test_an_iteration_trains_on_its_own_steps_and_replays_earlier_ones(
    trainer: Callable[..., RewardTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the earlier completions those with the smallest seeds are kept, a uniform sample since seeds are hashes."""
    monkeypatch.setattr(rl.update.reward_training, "KEPT", 3)
    ours, seen = trainer(replay=0.5), list[list[tuple[int, int]]]()
    monkeypatch.setattr(ours, "update", lambda batch: seen.append(sorted((e.step, e.seed) for e in batch)) or 0.5)

    def groups(*seeds: int) -> list[RolloutGroup]:
        rollouts = [answered("2", seed=seed) for seed in seeds]
        return [RolloutGroup(problem=r.problem, prompt_ids=(1,), rollouts=(r,)) for r in rollouts]

    assert ours.after_step(groups(30, 1), 1) == {} and seen == []
    assert ours.after_step(groups(20, 40), 2) == {"reward_model/loss": 0.5, "reward_model/examples": 4}
    assert seen == [[(1, 1), (1, 30), (2, 20), (2, 40)]] and [e.seed for e in ours.examples] == [1, 20, 30]
    ours.after_step(groups(50), 3)
    ours.after_step(groups(10), 4)
    fresh, replayed = seen[1][-2:], seen[1][:-2]
    assert fresh == [(3, 50), (4, 10)] and len(replayed) == 2 and all(step < 3 for step, _ in replayed)
    assert [e.seed for e in ours.examples] == [1, 10, 20]


def test_a_training_that_diverges_is_told(trainer: Callable[..., RewardTrainer]) -> None:
    ours = trainer(learning_rate=7.0)
    with torch.no_grad():
        ours.model.model.get_parameter("score.weight").fill_(float("nan"))
    with pytest.raises(UserError, match="reward_model_learning_rate is 7: the reward model's loss is nan"):
        ours.update(examples(2, 1))


def test_a_model_that_scores_no_answers_is_refused(
    model: Path, scorer: Path, step_scorer: Path, tmp_path: Path
) -> None:
    two = tmp_path / "two"
    made = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    made.save_pretrained(two)
    headless = with_head(model, tmp_path / "headless", architectures=["Qwen2ForSequenceClassification"])
    made.model.save_pretrained(headless)
    config = made.config
    config.architectures, config.num_labels = ["Qwen2ForSequenceClassification"], 1
    config.save_pretrained(headless)
    tiny_tokenizer().save_pretrained(two)
    for folder, message in (
        (model, "it is a Qwen2ForCausalLM, which has no trained head that scores answers"),
        (two, "it has 2 labels; a Qwen2ForSequenceClassification that scores an answer has one"),
        (headless, r"its files lack 1 of the weights .*\(score.weight\), which would be random"),
        (tmp_path / "nowhere", "there is no such folder"),
        (tmp_path, "it has no readable config.json"),
    ):
        with pytest.raises(UserError, match=f"reward_model is '{folder}': {message}") as raised:
            RewardModel.load(str(folder), CPU)
        assert "\n" not in str(raised.value)


def test_a_resumed_run_trains_it_with_its_own_learning_rate_and_the_old_moments(
    trainer: Callable[..., RewardTrainer], tmp_path: Path
) -> None:
    first, second = trainer(), trainer(learning_rate=1e-4)
    first.update(examples(5, 1))
    first.save(tmp_path)
    second.load(tmp_path)
    (group,) = second.optimizer.param_groups
    assert group["lr"] == 1e-4
    moments = [
        [o.optimizer.state[p]["exp_avg"] for p in o.optimizer.param_groups[0]["params"]] for o in (first, second)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))
