"""Simulated quantization: any model of transformers, computing as if its linear layers were of another format.

Read in this order: `linear` (one layer), `scheme` (what is rounded, and the 14 schemes of ZeroQuant-FP), `model` (a
scheme put on a model), `blocks` (the Hessians that GPTQ needs).
"""

from labkit.simulation.linear import SimulatedLinear, round_each_token
from labkit.simulation.model import Simulation, simulating
from labkit.simulation.scheme import (
    BLOCK_ROWS,
    METHODS,
    PAPER_GROUP,
    PAPER_RANK,
    Applied,
    Method,
    Scheme,
    Weights,
    paper_grid,
)

__all__ = [
    "BLOCK_ROWS",
    "METHODS",
    "PAPER_GROUP",
    "PAPER_RANK",
    "Applied",
    "Method",
    "Scheme",
    "SimulatedLinear",
    "Simulation",
    "Weights",
    "paper_grid",
    "round_each_token",
    "simulating",
]
