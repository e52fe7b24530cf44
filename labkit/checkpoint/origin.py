"""Where a base model came from, as far as its own files say so: what a quantized model must pass on."""

from __future__ import annotations

import re
from pathlib import Path

from labkit.profiles import EMBEDDED, SPEED

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
OWN_LICENSE = "apache-2.0"  # labkit's own models come with it


def origin(source: str, folder: Path) -> dict[str, str]:
    """`base_model` (a hub id, "" for a local folder) and `license` ("" if unknown) of the model `source` in `folder`.

    A local folder's path is nobody's business once the model is published. The licence is the one in the metadata of
    the model's own card.
    """
    if source in (EMBEDDED, SPEED):
        return {"base_model": "", "license": OWN_LICENSE}
    name = source.removeprefix("hub:").partition("@")[0]
    known = HUB_ID.fullmatch(name) and not Path(source).expanduser().exists()
    return {"base_model": name if known else "", "license": _license(folder / "README.md")}


def _license(card: Path) -> str:
    if not card.is_file():
        return ""
    from huggingface_hub.repocard import metadata_load

    try:
        found = (metadata_load(card) or {}).get("license", "")
    except (ValueError, OSError):  # a card that is no card says nothing
        return ""
    return found if isinstance(found, str) else ""
