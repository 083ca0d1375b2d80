"""A task and its reward in a file, as a user would write them: one short sentence with a given word.

python -m benchmarks.one_sentence FILE      writes the rows, 1,000 of them
"""

from __future__ import annotations

import json
import random
import re
import sys
from itertools import product
from pathlib import Path

WORDS = [
    "river",
    "window",
    "garden",
    "teacher",
    "winter",
    "bridge",
    "coffee",
    "letter",
    "mountain",
    "doctor",
    "kitchen",
    "market",
    "silver",
    "summer",
    "forest",
    "island",
    "paper",
    "music",
    "yellow",
    "family",
    "horse",
    "bottle",
    "pocket",
    "castle",
    "engine",
    "flower",
    "hammer",
    "jacket",
    "ladder",
    "mirror",
    "needle",
    "orange",
    "pencil",
    "rabbit",
    "saddle",
    "ticket",
    "valley",
    "wagon",
    "zebra",
    "candle",
    "basket",
    "blanket",
    "camera",
    "dragon",
    "feather",
    "guitar",
    "helmet",
    "lantern",
    "magnet",
    "napkin",
]
TOPICS = (
    "the sea", "a journey", "a school", "the weather", "a dog", "an old house", "breakfast", "a friend", "the city", "a holiday",
    "the night", "a farm", "a birthday", "the train", "work", "a game", "the moon", "a shop", "rain", "a story",
)  # fmt: skip


def reward(completion: str, word: str) -> bool:
    """Whether it is one sentence of three to twelve words, among them the given one, that ends with its only full stop."""
    text = completion.strip()
    words = re.findall(r"[A-Za-z']+", text)
    is_sentence = text.endswith(".") and text.count(".") == 1 and "\n" not in text
    return is_sentence and 3 <= len(words) <= 12 and word in words


def write_rows(path: Path) -> None:
    pairs = list(product(WORDS, TOPICS))
    random.Random(0).shuffle(pairs)
    rows = [
        {"prompt": f'Write one short sentence about {topic} with the word "{word}" in it.', "word": word}
        for word, topic in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]))
