"""A vLLM server in a child (`server`), and vLLM's own benchmark against it (`load`)."""

from labkit.serving.load import Load, Loaded, Repeated, bench_command, put_load, repeated
from labkit.serving.server import Server, compiling, serve, serve_command

__all__ = [
    "Load",
    "Loaded",
    "Repeated",
    "Server",
    "bench_command",
    "compiling",
    "put_load",
    "repeated",
    "serve",
    "serve_command",
]
