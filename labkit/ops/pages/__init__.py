"""Executed notebooks as HTML pages that need no network: for the report of a run, and for the book."""

from labkit.ops.pages.book import write_book
from labkit.ops.pages.page import Site
from labkit.ops.pages.run import pages_of_run
from labkit.ops.pages.template import filled

__all__ = ["Site", "filled", "pages_of_run", "write_book"]
