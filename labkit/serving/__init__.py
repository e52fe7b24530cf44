"""vLLM's server in a child (`server`), vLLM's benchmark against it (`load`), the engine alone (`phases`)."""

from labkit.serving.load import Load, Loaded, bench_command, put_load
from labkit.serving.phases import Alone, measure_alone
from labkit.serving.repeats import Repeated, in_words, ratio, repeated
from labkit.serving.server import KEY_VARIABLE, Server, compiling, serve, serve_command

__all__ = [
    "KEY_VARIABLE",
    "Alone",
    "Load",
    "Loaded",
    "Repeated",
    "Server",
    "bench_command",
    "compiling",
    "in_words",
    "measure_alone",
    "put_load",
    "ratio",
    "repeated",
    "serve",
    "serve_command",
]
