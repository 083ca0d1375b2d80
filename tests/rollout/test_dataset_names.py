"""What an option that names data sets means, and which mixtures are refused."""

from __future__ import annotations

import pytest

from rewards.errors import UserError
from rollout.dataset_names import DatasetName, HubName, read_names


@pytest.mark.parametrize(
    ("given", "name", "weight"),
    [
        ("gsm8k", "gsm8k", None),
        ("data/a.jsonl=0.7", "data/a.jsonl", 0.7),
        ("x/y:main/train=2", "x/y:main/train", 2.0),
        ("lr=0.1/a.jsonl", "lr=0.1/a.jsonl", None),  # a folder's name
        ("lr=0.1/a.jsonl=1e-1", "lr=0.1/a.jsonl", 0.1),
        ("reasoning-gym:gcd", "reasoning-gym:gcd", None),
    ],
)
def test_a_number_behind_the_last_equals_sign_is_the_weight(given: str, name: str, weight: float | None) -> None:
    assert DatasetName.read(given) == DatasetName(name=name, weight=weight)


def test_a_hub_name_may_have_a_configuration_and_a_split() -> None:
    names = ("x/y", "x/y:main", "x/y:main/test", "x/y:/test")
    assert [(h.name, h.config, h.split) for h in map(HubName.read, names)] == [
        ("x/y", None, None),
        ("x/y", "main", None),
        ("x/y", "main", "test"),
        ("x/y", None, "test"),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), r"dataset is '': it names no data set; name one"),
        (("",), r"dataset is '': it names no data set; name one"),
        (("gsm8k", "=0.5"), r"dataset is 'gsm8k =0.5': it names no data set at one place"),
        (("a.jsonl=1", "math", "a.jsonl=2"), r"it names 'a.jsonl' 2 times; name it once, with the sum"),
        (("a.jsonl", "./a.jsonl"), r"it names 'a.jsonl' 2 times"),
        (("a.jsonl=0.7", "gsm8k"), r"'gsm8k' has no weight and another has one; weight all of them, as in gsm8k=0.5"),
        (("a.jsonl=2", "gsm8k=-1"), r"the weight of 'gsm8k' is -1; it must be 0 or more"),
        (("a.jsonl=nan", "gsm8k=1"), r"the weight of 'a.jsonl' is nan; it must be 0 or more"),
        (("a.jsonl=inf", "gsm8k=1"), r"the weight of 'a.jsonl' is inf"),
        (("a.jsonl=0", "gsm8k=0"), r"its weights sum to 0"),
    ],
)
def test_names_and_weights_that_nothing_can_be_drawn_by_are_refused(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_names(given)
