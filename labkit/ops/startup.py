"""What a process of labkit's own does not load when it starts."""

from __future__ import annotations

import sys


def skip_grammar_of_addresses() -> None:
    """Keeps jsonschema, which nbformat imports, from building a grammar of internationalized addresses: 1.3 s a start.

    jsonschema then leaves the formats "iri" and "iri-reference" unchecked, of which no notebook's schema has one.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # None: importing it fails, as documented
