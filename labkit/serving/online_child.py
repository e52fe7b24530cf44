"""What runs in the engine's interpreter: vLLM rounds a BF16 checkpoint while it loads it, by each name that it knows.

Started by labkit.engine.run_script: no labkit. The answer has [name, taken, share, words] for each name: whether the
engine took it, what share of the linear layers it quantized, and the first line of its error.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

NEEDS_MORE = "online"  # not a scheme: it means that quantization_config says which


def quantized_share(model: Any) -> float:
    """How many of a model's linear layers are not plain BF16 ones."""
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

    layers = [layer for layer in model.modules() if isinstance(layer, LinearBase)]
    return sum(not isinstance(layer.quant_method, UnquantizedLinearMethod) for layer in layers) / len(layers)


def attempt(engine: Any, job: dict[str, Any], name: str, told: Connection) -> None:
    """Loads the checkpoint by one name, lets it write two tokens, and tells how it went."""
    from vllm import SamplingParams

    try:
        llm = engine(model=job["model"], quantization=name, **job["engine"])
        llm.generate({"prompt_token_ids": [1]}, SamplingParams(max_tokens=2, ignore_eos=True), use_tqdm=False)
        told.send([True, llm.apply_model(quantized_share)[0], ""])
    except Exception as error:  # noqa: BLE001  whatever a name does, it is the answer for this name
        told.send([False, 0.0, next(iter(str(error).strip().splitlines()), type(error).__name__)])


def main(job: dict[str, Any]) -> list[list[Any]]:
    from vllm import LLM  # here, once: a forked process has what this one imported, and nothing of another's engine
    from vllm.config.quantization import ONLINE_QUANT_SHORTHAND_NAMES

    processes = multiprocessing.get_context("fork")
    answers = []
    for name in ONLINE_QUANT_SHORTHAND_NAMES:
        if name == NEEDS_MORE:
            continue
        hear, told = processes.Pipe(duplex=False)
        child = processes.Process(target=attempt, args=(LLM, job, name, told))
        child.start()
        told.close()
        try:
            answers.append([name, *hear.recv()])
        except EOFError:
            answers.append([name, False, 0.0, "the engine's process died"])
        child.join()
    return answers


if "job" in globals():
    answer = main(globals()["job"])
