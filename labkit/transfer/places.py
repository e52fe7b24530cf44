"""From an address to the place."""

from __future__ import annotations

from labkit.transfer.address import Address
from labkit.transfer.folder import FolderSource
from labkit.transfer.hub import HubStore
from labkit.transfer.s3 import S3Store
from labkit.transfer.store import Source, Target


def source_of(address: Address) -> Source:
    """Where files are brought from."""
    return FolderSource(address) if address.kind == "folder" else target_of(address)


def target_of(address: Address) -> Target:
    """Where files are sent to: a bucket or a repository. (To a folder nothing is sent: it brings.)"""
    return S3Store(address) if address.kind == "s3" else HubStore(address)
