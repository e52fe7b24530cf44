"""The commands of the command line, by name."""

from labkit.ops.commands.command import Command
from labkit.ops.commands.moving import FETCH, PUBLISH
from labkit.ops.commands.piping import PIPELINE
from labkit.ops.commands.running import BOOK, LABS, RUN
from labkit.ops.commands.serving import SERVE
from labkit.ops.commands.showing import DOCTOR, RESULTS
from labkit.ops.commands.stepping import COMPARE, EVALUATE, QUANTIZE

COMMANDS: dict[str, Command] = {
    "run": RUN,
    "results": RESULTS,
    "doctor": DOCTOR,
    "labs": LABS,
    "book": BOOK,
    "serve": SERVE,
    "publish": PUBLISH,
    "fetch": FETCH,
    "quantize": QUANTIZE,
    "evaluate": EVALUATE,
    "compare": COMPARE,
    "pipeline": PIPELINE,
}
