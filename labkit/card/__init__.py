"""The model card of a checkpoint: what was measured of it (`evidence`), and the card that says so (`text`)."""

from labkit.card.evidence import Evidence, Score, gather
from labkit.card.text import CARD, model_card

__all__ = ["CARD", "Evidence", "Score", "gather", "model_card"]
