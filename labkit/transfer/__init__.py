"""Checkpoints on their way: out to a folder, an S3 bucket or the hub, and back again, whole or not at all.

Read in this order: `address` (what a target or source is called), `bundle` (what goes out), `store` (what any place can
do), `folder`, `s3` and `hub` (the places), `send` and `bring` (the two ways).
"""

from labkit.transfer.address import Address, is_address, parse
from labkit.transfer.bring import arrived, bring, bring_to_cache, listed, peek
from labkit.transfer.bundle import Bundle, bundle
from labkit.transfer.send import Plan, plan, send

__all__ = [
    "Address",
    "Bundle",
    "Plan",
    "arrived",
    "bring",
    "bring_to_cache",
    "bundle",
    "is_address",
    "listed",
    "parse",
    "peek",
    "plan",
    "send",
]
