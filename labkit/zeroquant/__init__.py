"""ZeroQuant-FP's grid as measured here: scores, the paper's claims judged on them, and its published figures beside."""

from labkit.zeroquant.claims import CLAIMS, Claim, Judged, judge, over_baseline
from labkit.zeroquant.published import LORC, LORC_SOURCE, MEANS, SOURCE, VARIANTS, rise
from labkit.zeroquant.scored import Scored

__all__ = [
    "CLAIMS",
    "LORC",
    "LORC_SOURCE",
    "MEANS",
    "SOURCE",
    "VARIANTS",
    "Claim",
    "Judged",
    "Scored",
    "judge",
    "over_baseline",
    "rise",
]
