"""vLLM's server in a child process (`server`); speed by its own benchmark, and of the engine alone (`speed`)."""

from labkit.serve.server import KEY_VARIABLE, Server, compiling, serve
from labkit.serve.speed import Alone, Load, Loaded, Repeated, bench_command, measure_alone, put_load
