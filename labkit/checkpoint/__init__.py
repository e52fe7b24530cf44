"""Checkpoints: found, loaded strictly, saved atomically, described, and judged by what the serving stack accepts."""

from labkit.checkpoint.folder import (
    PICKLES,
    different_tensors,
    origin,
    read_headers,
    refuse_unsafe,
    resolve_model,
    short_name,
    wanted,
    weight_files,
)
from labkit.checkpoint.inspect import Finding, Inspection, inspect, lint
from labkit.checkpoint.load import cache_scales, load, load_tokenizer, rescale_cache, save, weight_errors, weight_scales
