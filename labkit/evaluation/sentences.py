"""IFEval counts sentences, with NLTK's `punkt_tab`: found, downloaded, or trained here where there is no network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from labkit.tiny import corpus

ENGLISH_STORIES = 2000  # what a sentence splitter is trained on
TRAINED = "trained_by_labkit"  # beside a sentence splitter that is not NLTK's own
NLTKS, OURS = "nltk punkt_tab", "trained on generated English"


def find_sentence_splitter(places: Sequence[str], folder: Path, *, offline: bool) -> tuple[str, str]:
    """Looks in `places` and NLTK's own, and makes one in `folder` if there is none.

    Says in words which one it is, and gives the `NLTK_DATA` with which another interpreter, whose own places are
    others, finds the same.
    """
    import nltk

    for place in reversed(places):
        if place not in nltk.data.path:
            nltk.data.path.insert(0, place)  # NLTK reads nowhere else
    try:
        found = nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        which = sentence_splitter(folder, offline=offline)
    else:
        which = OURS if Path(found, TRAINED).exists() else NLTKS
    return which, os.pathsep.join(nltk.data.path)


def sentence_splitter(folder: Path, *, offline: bool) -> str:
    """Makes NLTK data with a sentence splitter in `folder`; says in words which one it is.

    NLTK's own if it can be had, else one trained on generated English.
    """
    import nltk

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # NLTK writes only where nobody else can
    if str(folder) not in nltk.data.path:
        nltk.data.path.insert(0, str(folder))  # and only below its own folders
    if not offline and nltk.download("punkt_tab", download_dir=str(folder), quiet=True):
        return NLTKS
    return _train(folder)


def _train(folder: Path) -> str:
    """Whole or not at all: NLTK takes any folder of that name for a splitter."""
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    final = folder / "tokenizers" / "punkt_tab" / "english"
    final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    text = "\n\n".join(story.text for story in corpus.stories("train", ENGLISH_STORIES))
    with tempfile.TemporaryDirectory(dir=final.parent) as scratch:
        english = Path(scratch) / final.name
        english.mkdir(mode=0o700)
        save_punkt_params(PunktTrainer(text).get_params(), str(english))
        (english / TRAINED).touch()
        english.replace(final)
    return OURS
