"""Published, never measured here: the perplexities that ZeroQuant-FP reports, and ZeroQuant-V2 of LoRC.

Source: Wu, Yao, He, "ZeroQuant-FP", arXiv 2307.09782, read from the authors' slides on the ZeroQuant series, where the
rows for LoRC, M1 and M2 are not legible: so none stand here. Two footnotes of the reader: the C4 figure 7.78 of
LLaMA-7b at 16 bits is as printed, though its mean of 13.37 implies 7.08; "OPT-3b" and "OPT-7b" are as printed, and by
their perplexities are OPT-1.3b and OPT-6.7b. Summaries in circulation give LLaMA-13b's figures as LLaMA-7b's.
"""

from __future__ import annotations

SOURCE = "published: Wu, Yao, He, ZeroQuant-FP, arXiv 2307.09782"
VARIANTS = ("bf16", "w8a8-int-int", "w8a8-int-fp", "w8a8-fp-fp", "w4a8-int-int", "w4a8-int-fp", "w4a8-fp-fp")

# model: the mean over WikiText-2, PTB and C4, one for each of VARIANTS
MEANS: dict[str, tuple[float, ...]] = {
    "LLaMA-3b": (11.93, 12.00, 11.96, 11.99, 12.55, 12.39, 12.45),
    "LLaMA-7b": (13.37, 13.58, 13.45, 13.46, 16.23, 16.09, 15.14),
    "LLaMA-13b": (10.31, 10.63, 10.38, 10.38, 11.48, 11.31, 11.08),
    "LLaMA-30b": (5.79, 5.90, 5.80, 5.81, 6.02, 5.94, 5.92),
    "OPT-3b": (15.44, 15.94, 15.85, 15.86, 16.41, 16.40, 16.29),
    "OPT-7b": (11.90, 12.66, 11.99, 11.99, 13.18, 12.20, 12.09),
    "OPT-13b": (11.22, 15.94, 11.27, 11.27, 16.70, 11.34, 11.34),
    "OPT-30b": (10.70, 25.76, 10.69, 10.69, 24.42, 10.73, 10.72),
}

# ZeroQuant-V2, OPT-6.7b, only the weights rounded, a scale for each row: bits -> perplexity without LoRC, and with it
LORC_SOURCE = "published: Yao et al., ZeroQuant-V2, arXiv 2303.08302"
LORC: dict[int, tuple[float, float]] = {4: (12.28, 12.10), 3: (14.18, 13.00), 2: (120.56, 24.17)}


def rise(model: str, variant: str) -> float | None:
    """A variant's published perplexity over the same model's at 16 bits; None where the paper's row is not legible."""
    if variant not in VARIANTS:
        return None
    return MEANS[model][VARIANTS.index(variant)] / MEANS[model][0]
