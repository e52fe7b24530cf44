"""A vLLM server in a child (`server`), vLLM's own benchmark against it (`load`), its CPU kernels alone (`kernels`)."""

from labkit.serving.kernels import KernelTime, kernel_times
from labkit.serving.load import Load, Loaded, Repeated, bench_command, put_load, ratio, repeated
from labkit.serving.server import KEY_VARIABLE, Server, compiling, serve, serve_command

__all__ = [
    "KEY_VARIABLE",
    "KernelTime",
    "Load",
    "Loaded",
    "Repeated",
    "Server",
    "bench_command",
    "compiling",
    "kernel_times",
    "put_load",
    "ratio",
    "repeated",
    "serve",
    "serve_command",
]
