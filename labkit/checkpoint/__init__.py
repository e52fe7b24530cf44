"""Checkpoints: found, loaded strictly, saved atomically, described, and judged by what the serving stack accepts."""

from labkit.checkpoint.alike import different_tensors
from labkit.checkpoint.cache import cache_scales, rescale_cache
from labkit.checkpoint.headers import TensorInfo, read_headers
from labkit.checkpoint.inspect import Inspection, Layer, TensorGroup, inspect
from labkit.checkpoint.lint import Finding, lint
from labkit.checkpoint.load import load, load_tokenizer
from labkit.checkpoint.origin import origin
from labkit.checkpoint.resolve import resolve_model, short_name, wanted
from labkit.checkpoint.save import save
from labkit.checkpoint.weights import weight_errors, weight_scales
from labkit.modelfolder import PICKLES, read_config, refuse_unsafe

__all__ = [
    "PICKLES",
    "Finding",
    "Inspection",
    "Layer",
    "TensorGroup",
    "TensorInfo",
    "cache_scales",
    "different_tensors",
    "inspect",
    "lint",
    "load",
    "load_tokenizer",
    "origin",
    "read_config",
    "read_headers",
    "refuse_unsafe",
    "rescale_cache",
    "resolve_model",
    "save",
    "short_name",
    "wanted",
    "weight_errors",
    "weight_scales",
]
