"""vLLM's server in a child (`server`), vLLM's benchmark against it (`load`), the engine alone (`phases`, `kernels`)."""

from labkit.serving.kernels import KernelTime, kernel_times
from labkit.serving.load import Load, Loaded, bench_command, put_load
from labkit.serving.online import Online, online_schemes
from labkit.serving.phases import Alone, Phases, measure_alone
from labkit.serving.repeats import Repeated, ratio, repeated
from labkit.serving.server import KEY_VARIABLE, Server, compiling, serve, serve_command

__all__ = [
    "KEY_VARIABLE",
    "Alone",
    "KernelTime",
    "Load",
    "Loaded",
    "Online",
    "Phases",
    "Repeated",
    "Server",
    "bench_command",
    "compiling",
    "kernel_times",
    "measure_alone",
    "online_schemes",
    "put_load",
    "ratio",
    "repeated",
    "serve",
    "serve_command",
]
