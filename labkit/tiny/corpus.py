"""The text that the embedded model learns from: word problems to solve and short stories to predict.

Everything is generated, so nothing has to be downloaded and nobody's licence is in the way. Each row is drawn from a
random generator seeded by (seed, split, index): the same call gives the same rows on every machine.

The splits can't overlap. A problem belongs to the split that the hash of its *key* chooses, where the key is the kind
of problem and its numbers: "Mia has 14 apples and buys 8 more" and "Tom has 14 coins and buys 8 more" share a key, so
the test set never asks for a sum that training answered under another name. A story's key is its cast and plot.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

Split = Literal["train", "calibration", "test"]

NAMES = {
    "She": "Mia Anna Lena Sara Nora Ella Ivy Rosa Zoe Clara Maya Lucy".split(),
    "He": "Tom Ben Omar Leo Max Sam Paul Ravi Noah Hugo Finn Carl".split(),
}
ITEMS = "apples books coins marbles stamps shells pencils cards stickers buttons cookies beads balls stones".split()
BOXES = "boxes bags jars baskets crates packs".split()
GAIN = [
    "{they} buys {b} more.",
    "{they} finds {b} more.",
    "{friend} gives {name} {b} more.",
    "Then {they_low} gets {b} more from {friend}.",
]
LOSE = [
    "{they} gives {b} to {friend}.",
    "{they} loses {b}.",
    "{they} sells {b}.",
    "Then {friend} takes {b} of them.",
]


@dataclass(frozen=True)
class Problem:
    """One word problem; `answer` is worked out line by line and ends in `#### N`, as in GSM8K."""

    key: str
    question: str
    answer: str

    @property
    def result(self) -> int:
        return int(self.answer.rsplit("#### ", 1)[1])


def split_of(key: str) -> Split:
    """The only split that a key may stand in: 80% train, 5% calibration, 15% test."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 80 else "calibration" if bucket < 85 else "test"


def _solve(first: int, steps: list[tuple[str, int]]) -> str:
    """The worked answer: one line a step, then `#### N`."""
    value, lines = first, []
    for sign, number in steps:
        result = {"+": value + number, "-": value - number, "*": value * number, "/": value // number}[sign]
        lines.append(f"{value} {sign} {number} = {result}")
        value = result
    return "\n".join([*lines, f"#### {value}"])


def _change(rng: random.Random, value: int) -> tuple[str, int]:
    """One gain or loss that keeps a count of things between 1 and 150."""
    if rng.random() < 0.5 or value < 4:
        return "+", rng.randint(2, 60)
    return "-", rng.randint(2, min(value - 1, 60))


def draw_problem(rng: random.Random) -> Problem:
    """One problem of one or two steps; the draw decides its key, and so its split."""
    they = rng.choice(sorted(NAMES))
    name, item, box = rng.choice(NAMES[they]), rng.choice(ITEMS), rng.choice(BOXES)
    friend = rng.choice([n for names in NAMES.values() for n in names if n != name])

    steps: list[tuple[str, int]] = []
    kind = rng.choice(["has", "has", "boxes", "share"])
    two_steps = rng.random() < 0.6
    if kind == "boxes":
        first, each = rng.randint(2, 12), rng.randint(2, 12)
        steps.append(("*", each))
        text, value = [f"{name} has {first} {box} with {each} {item} in each."], first * each
    elif kind == "share":
        people, each = rng.randint(2, 9), rng.randint(2, 12)
        first = people * each
        if two_steps and first > 5:
            gained = rng.randint(2, first - 3)
            text = [f"{name} has {first - gained} {item}.", _say(rng, GAIN, they, name, friend, gained)]
            first, steps = first - gained, [("+", gained)]
        else:
            text = [f"{name} has {first} {item}."]
        steps.append(("/", people))
        text.append(f"{they} shares them equally among {people} friends.")
        ask = f"How many {item} does each friend get?"
        key = f"share:{first}:{steps}"
        return Problem(key, " ".join([*text, ask]), _solve(first, steps))
    else:
        first = rng.randint(3, 90)
        text, value = [f"{name} has {first} {item}."], first
    for _ in range(1 + two_steps - len(steps)):
        sign, number = _change(rng, value)
        value += number if sign == "+" else -number
        steps.append((sign, number))
        text.append(_say(rng, GAIN if sign == "+" else LOSE, they, name, friend, number))
    text.append(f"How many {item} does {name} have{' now' if len(text) > 1 else ' in all'}?")
    return Problem(f"{kind}:{first}:{steps}", " ".join(text), _solve(first, steps))


def _say(rng: random.Random, phrases: list[str], they: str, name: str, friend: str, number: int) -> str:
    return rng.choice(phrases).format(they=they, they_low=they.lower(), name=name, friend=friend, b=number)


PLACES = "forest garden harbor market meadow mill mountain river school tower valley village".split()
TRAITS = "brave careful clever curious gentle honest lively patient quiet shy stubborn tired".split()
ANIMALS = "badger cat crow dog donkey fox goat hare mouse owl pony turtle".split()
THINGS = "bell blanket boat candle clock drum flute kite lantern letter map mirror".split()
WEATHER = "a cold wind blew|it rained all day|the sun was warm|snow fell softly|fog hid the path|the night was clear"
TROUBLE = [
    "the {thing} was gone",
    "the {thing} broke in two",
    "nobody could find the {thing}",
    "a stranger took the {thing}",
    "the {thing} fell into the water",
]
HELP = [
    "looked under every stone",
    "asked the old miller",
    "followed the tracks",
    "climbed to the highest branch",
    "waited until the evening came",
    "called all the neighbors",
]
ENDINGS = [
    "In the end they found it and laughed.",
    "At last it was safe again, and they went home.",
    "They mended it together before dark.",
    "From that day on they shared it.",
    "They never lost it again.",
]


@dataclass(frozen=True)
class Story:
    """One short story, for perplexity."""

    key: str
    text: str


def draw_story(rng: random.Random) -> Story:
    """One story of six sentences."""
    they = rng.choice(sorted(NAMES))
    name, trait, place = rng.choice(NAMES[they]), rng.choice(TRAITS), rng.choice(PLACES)
    animal, thing = rng.choice(ANIMALS), rng.choice(THINGS)
    trouble, help_a, help_b = rng.choice(TROUBLE).format(thing=thing), *rng.sample(HELP, 2)
    kin = "girl" if they == "She" else "boy"
    text = (
        f"Once a {trait} {kin} named {name} lived near the {place} with {'an' if animal == 'owl' else 'a'} {animal}. "
        f"{they} kept a {thing} there and loved it more than anything. "
        f"One day {rng.choice(WEATHER.split('|'))}, and {trouble}. "
        f'"Do not worry," said the {animal}, "we will help you." '
        f"So {name} {help_a}, and the {animal} {help_b}. {rng.choice(ENDINGS)}"
    )
    return Story(f"{name}:{trait}:{place}:{animal}:{thing}:{trouble}", text)


Row = TypeVar("Row", Problem, Story)


def _rows(draw: Callable[[random.Random], Row], split: Split, count: int, seed: int) -> list[Row]:
    """The first `count` different rows of a split; row by row, each from a generator of its own."""
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; the splits are {', '.join(get_args(Split))}")
    found: dict[str, Row] = {}
    index = 0
    while len(found) < count:
        rng = random.Random(f"{seed}:{split}:{draw.__name__}:{index}")
        row = draw(rng)
        while split_of(row.key) != split:
            row = draw(rng)
        found.setdefault(row.question if isinstance(row, Problem) else row.text, row)
        index += 1
    return list(found.values())


def problems(split: Split, count: int, seed: int = 0) -> list[Problem]:
    """`count` different problems of a split, always the same ones for the same seed."""
    return _rows(draw_problem, split, count, seed)


def stories(split: Split, count: int, seed: int = 0) -> list[Story]:
    """`count` different stories of a split, always the same ones for the same seed."""
    return _rows(draw_story, split, count, seed)


def prompt(question: str) -> str:
    """What the user says; the evaluation task's `doc_to_text` is the same line."""
    return f"Question: {question}\nAnswer:"


def fingerprint(rows: int = 1000) -> str:
    """SHA-256 of the first rows of every split: says whether this generator still makes the text of the weights."""
    digest = hashlib.sha256()
    for split in get_args(Split):
        for problem in problems(split, rows):
            digest.update(f"{problem.question}\x00{problem.answer}\x00".encode())
        for story in stories(split, rows):
            digest.update(f"{story.text}\x00".encode())
    return digest.hexdigest()
