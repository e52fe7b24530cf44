"""Perplexity on held-out text: the rows of tokens (`texts`), and what a model in memory makes of them (`losses`)."""

from labkit.perplexity.losses import Losses, Row, losses
from labkit.perplexity.texts import held_out_rows

__all__ = ["Losses", "Row", "held_out_rows", "losses"]
