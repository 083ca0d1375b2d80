"""Names of data sets as the options have them: `name`, `name=weight`, and of the hub `name:config/split`. Nothing is loaded here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import UserError

FILES = (".jsonl", ".json", ".csv", ".parquet")  # each also with .gz


@dataclass(frozen=True, kw_only=True)
class DatasetName:
    """A data set, and the weight with which its problems are drawn beside those of other data sets; None is its share of all problems."""

    name: str
    weight: float | None

    @staticmethod
    def read(given: str) -> DatasetName:
        """From `name=weight` or `name`: what stands behind the last "=" is a weight if it is a number, else a part of the name."""
        name, _, number = given.rpartition("=")
        try:
            return (
                DatasetName(name=name, weight=float(number)) if "=" in given else DatasetName(name=given, weight=None)
            )
        except ValueError:
            return DatasetName(name=given, weight=None)

    @property
    def stem(self) -> str:
        """The name without folders and ending, as a part of a folder's name."""
        name, colon, rest = self.name.partition(":")
        return Path(name).stem + colon + rest.replace("/", "-")


def read_names(given: Sequence[str]) -> tuple[DatasetName, ...]:
    """The data sets of the option `dataset`. Raises UserError for none, for one that is named twice, and for weights that cannot be drawn by."""
    found = tuple(map(DatasetName.read, given))
    what = f"dataset is {' '.join(given)!r}"
    if not found or not all(dataset.name.strip() for dataset in found):
        raise UserError(
            f"{what}: it names no data set{' at one place' if len(found) > 1 else ''}; name one, such as gsm8k or data.jsonl"
        )
    ((most, count), *_) = Counter(str(Path(dataset.name)) for dataset in found).most_common()
    if count > 1:
        raise UserError(f"{what}: it names {most!r} {count} times; name it once, with the sum of the weights")
    without = [dataset.name for dataset in found if dataset.weight is None]
    weights = [dataset.weight for dataset in found if dataset.weight is not None]
    if without and weights:
        raise UserError(
            f"{what}: {without[0]!r} has no weight and another has one; weight all of them, as in {without[0]}=0.5, or none"
        )
    if bad := next((d for d in found if d.weight is not None and not 0 <= d.weight < math.inf), None):
        raise UserError(f"{what}: the weight of {bad.name!r} is {bad.weight:g}; it must be 0 or more")
    if weights and not sum(weights) > 0:
        raise UserError(f"{what}: its weights sum to 0, so that nothing would be drawn; give one of them more than 0")
    return found


@dataclass(frozen=True, kw_only=True)
class HubName:
    """A data set of the hub (or a local folder in the hub's format) and, where they are named, its configuration and split."""

    name: str
    config: str | None
    split: str | None

    @staticmethod
    def read(dataset: str) -> HubName:
        """From `name`, `name:config`, `name:config/split` or `name:/split`."""
        name, _, rest = dataset.partition(":")
        config, _, split = rest.partition("/")
        return HubName(name=name, config=config or None, split=split or None)

    @property
    def without_split(self) -> str:
        return self.name if self.config is None else f"{self.name}:{self.config}"


def is_file(dataset: str) -> bool:
    """Whether the name is that of a file that can be read, by its ending."""
    return dataset.removesuffix(".gz").endswith(FILES)
