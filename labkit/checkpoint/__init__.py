"""Checkpoints: found, loaded strictly, saved atomically, described, and judged by what the serving stack accepts."""

from labkit.checkpoint.cache import cache_scales, rescale_cache
from labkit.checkpoint.files import read_config
from labkit.checkpoint.headers import TensorInfo, read_headers
from labkit.checkpoint.inspect import Inspection, Layer, TensorGroup, inspect
from labkit.checkpoint.lint import Finding, lint
from labkit.checkpoint.load import load, load_tokenizer
from labkit.checkpoint.resolve import resolve_model, short_name
from labkit.checkpoint.save import save
from labkit.checkpoint.weights import weight_errors, weight_scales

__all__ = [
    "Finding",
    "Inspection",
    "Layer",
    "TensorGroup",
    "TensorInfo",
    "cache_scales",
    "inspect",
    "lint",
    "load",
    "load_tokenizer",
    "read_config",
    "read_headers",
    "rescale_cache",
    "resolve_model",
    "save",
    "short_name",
    "weight_errors",
    "weight_scales",
]
