"""Executed notebooks as HTML pages that need no network: for the report of a run, and for the book."""

from labkit.ops.pages.book import write_book
from labkit.ops.pages.page import Site, style
from labkit.ops.pages.run import pages_of_run

__all__ = ["Site", "pages_of_run", "style", "write_book"]
