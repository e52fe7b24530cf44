"""A repository of the hub as a place. `HF_ENDPOINT` and `HF_TOKEN` come from the environment only.

A commit of the hub is atomic. So the large files are uploaded first, one after another (what the hub has already, by
its SHA-256, it does not take again), and one commit makes them visible, the manifest with them. A repository that is
not there is made, and is private.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from labkit.errors import TransferError, UsageError, first_line
from labkit.manifest import MANIFEST
from labkit.transfer.address import Address, is_loopback, refuse_plain_http
from labkit.transfer.bundle import File
from labkit.transfer.store import CutOff, Entry, Progress
from labkit.transfer.wanted import Digest

ENDPOINT = "HF_ENDPOINT"
CERTIFICATE = "SSL_CERT_FILE"
MESSAGE = "Sent by labkit publish"


class HubStore:
    """The files of a model repository at a revision."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._adds: list[Any] = []

    @cached_property
    def _api(self) -> Any:
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE:
            raise UsageError(f"{self.address} can't be reached: HF_HUB_OFFLINE is set", fix="unset it, and try again")
        if endpoint := os.environ.get(ENDPOINT, ""):
            refuse_plain_http(endpoint, ENDPOINT, CERTIFICATE)
        return HfApi(endpoint=endpoint or None, token=os.environ.get("HF_TOKEN") or False)

    @property
    def _place(self) -> dict[str, Any]:
        return {"repo_id": self.address.name, "revision": self.address.inside or None}

    # --- bringing ---------------------------------------------------------------------------------------------------

    def entries(self) -> Mapping[str, Entry]:
        from huggingface_hub.errors import RepositoryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with self._told():
            try:
                tree = list(self._api.list_repo_tree(**self._place, recursive=True))
            except RepositoryNotFoundError:
                return {}
        return {
            item.path: Entry(item.size, item.lfs.sha256 if item.lfs else "", "" if item.lfs else item.blob_id)
            for item in tree
            if isinstance(item, RepoFile)
        }

    def read(self, name: str, start: int, stop: int) -> bytes:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils._headers import build_hf_headers
        from huggingface_hub.utils._http import hf_raise_for_status

        with self._told():
            url = hf_hub_url(self.address.name, name, revision=self.address.inside or None, endpoint=self._api.endpoint)
            headers = build_hf_headers(token=self._api.token) | {"Range": f"bytes={start}-{stop - 1}"}
            answer = get_session().get(url, headers=headers, follow_redirects=True)
            hf_raise_for_status(answer)
        parts = urlsplit(str(answer.url))
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            raise TransferError(f"{self.address}: {name} was redirected to {parts.hostname}, without TLS")
        block: bytes = answer.content
        return block

    # --- sending ----------------------------------------------------------------------------------------------------

    def has(self, name: str, file: File, there: Entry) -> bool:
        if there.size != file.size:
            return False
        if there.sha256:
            return there.sha256 == file.sha256
        digest = Digest(there)
        for block in file.blocks(2**20):
            digest.update(block)
        return digest.fits

    def withdraw(self) -> None:
        """Nothing to do: until the commit, everything there stays as it was."""

    def put(self, name: str, file: File, moved: Progress) -> None:
        from huggingface_hub import CommitOperationAdd

        with self._told():
            add = CommitOperationAdd(name, str(file.path))
            file.require(add.upload_info.sha256.hex())
            if not self._adds:
                self._api.create_repo(self.address.name, private=True, exist_ok=True)
            self._api.preupload_lfs_files(additions=[add], **self._place)
        self._adds.append(add)
        moved(file.size)

    def finish(self, manifest: bytes, gone: Collection[str]) -> None:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        adds = [*self._adds, CommitOperationAdd(MANIFEST, manifest)]
        deletes = [CommitOperationDelete(name) for name in gone]
        with self._told():
            self._api.create_commit(operations=[*adds, *deletes], commit_message=MESSAGE, **self._place)

    # --- errors -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _told(self) -> Iterator[None]:
        """The hub client's errors in labkit's words."""
        import httpx
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

        try:
            yield
        except GatedRepoError as error:
            raise TransferError(
                f"{self.address} is gated", fix="accept its licence on the hub, then set HF_TOKEN"
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            hint = "set HF_TOKEN to a token that may" if status in (401, 403) else "check the name and the revision"
            raise TransferError(f"{self.address}: the hub answered {status}", fix=hint) from error
        except OfflineModeIsEnabled as error:
            raise UsageError(f"{self.address}: HF_HUB_OFFLINE is set", fix="unset it, and try again") from error
        except httpx.ConnectError as error:
            certificate = "CERTIFICATE_VERIFY_FAILED" in str(error)
            raise TransferError(
                f"{self.address}: "
                + ("the endpoint's certificate is not trusted here" if certificate else "the hub can't be reached"),
                why="it signed its own, or somebody stands between" if certificate else first_line(error),
                fix=f"set {CERTIFICATE} to a file with the certificate" if certificate else f"check {ENDPOINT}",
            ) from error
        except httpx.HTTPError as error:
            raise CutOff(
                f"{self.address}: the connection broke ({type(error).__name__})", fix="run it again"
            ) from error
