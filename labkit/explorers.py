"""Interactive pictures: a few controls, and a figure that answers to them and says in words what it shows.

`lab.show` shows one: with controls where there is a front end, as the figure of its first state where there is none.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from labkit import figures, memory
from labkit.compare import detection_power, samples_to_detect
from labkit.errors import UsageError
from labkit.figures import Figure

if TYPE_CHECKING:
    from torch import Tensor

    from labkit.behaviour import Captured

LABEL = {"description_width": "initial"}
GPUS = {"T4": 16, "L4, A10": 24, "L40S": 48, "A100, H100": 80, "H200": 141, "MI300X": 192}  # GB, by their data sheets
USABLE = 0.92  # of a GPU's memory that vLLM takes unless told otherwise
PROMPT_TOKENS = 8192  # that an engine puts through at once; longer prompts go in pieces
SCHEMES = get_args(memory.Scheme)
COUNTS = (20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)


class Slider(NamedTuple):
    """A number from `low` to `high`, at first `value`. power: `step` is one of its binary logarithm."""

    label: str
    low: float
    high: float
    step: float
    value: float
    power: bool = False


class Choice(NamedTuple):
    """One of `options`, at first `value`."""

    label: str
    options: tuple[str, ...]
    value: str


class Explorer(NamedTuple):
    """Controls by name, and `draw`, which takes a value for each of them and gives the figure with its description.

    Data is captured when the explorer is made, so that `draw` computes only what a control changes.
    """

    controls: Mapping[str, Slider | Choice]
    draw: Callable[..., Figure]

    def at(self, **state: Any) -> Figure:
        """The figure of a state; what is not named is as at first."""
        return self.draw(**{name: control.value for name, control in self.controls.items()} | state)


def current_shell() -> Any:
    """The IPython shell of this process; None in a script."""
    from IPython.core.getipython import get_ipython

    return get_ipython()


def present() -> bool:
    """Whether a front end sent the cell that is running.

    JupyterLab, Notebook and VS Code say with each cell which one it is; papermill and nbclient don't, and in what they
    save a widget would show nothing.
    """
    shell = current_shell()
    return hasattr(shell, "get_parent") and bool(shell.get_parent().get("metadata", {}).get("cellId"))


def ask(question: str, guess: float, answered: Callable[[float], None]) -> None:
    """A question with a field; `answered` is called with each number that is typed into it."""
    import ipywidgets
    from IPython.display import display

    width = ipywidgets.Layout(width="14em")
    field = ipywidgets.FloatText(value=guess, description="Your guess:", step=None, style=LABEL, layout=width)
    field.observe(lambda change: answered(float(change["new"])), names="value")
    display(ipywidgets.VBox([ipywidgets.HTML(html.escape(question)), field]))


def show(explorer: Explorer) -> None:
    """The controls of an explorer over its picture, which is drawn again with each change.

    A page that can't show widgets, such as a saved notebook on the web, shows the picture of the first state.
    """
    import ipywidgets
    from IPython.display import HTML, display

    def draw(**state: Any) -> None:
        figure = explorer.draw(**state)
        said, data = html.escape(figure.description), base64.b64encode(figure.png()).decode()
        display(HTML(f'<img alt="{said}" src="data:image/png;base64,{data}"><p><em>{said}</em></p>'))

    controls = {name: _widget(control) for name, control in explorer.controls.items()}
    shown = ipywidgets.interactive_output(draw, controls)
    row = ipywidgets.Box(list(controls.values()), layout=ipywidgets.Layout(flex_flow="row wrap"))
    first = explorer.at()
    saved = {"image/png": first.png(), "text/plain": first.description}
    display(ipywidgets.VBox([row, shown])._repr_mimebundle_() | saved, raw=True)


def _widget(control: Slider | Choice) -> Any:
    import ipywidgets

    options = {"value": control.value, "description": control.label, "style": LABEL}
    if isinstance(control, Choice):
        return ipywidgets.Dropdown(options=control.options, **options)
    if control.power:
        ends = {"base": 2, "min": math.log2(control.low), "max": math.log2(control.high), "step": control.step}
        return ipywidgets.FloatLogSlider(readout_format=",.0f" if control.low >= 1 else ".3g", **ends, **options)
    ends = {"min": control.low, "max": control.high, "step": control.step}
    return ipywidgets.FloatSlider(readout_format=".2f" if control.step >= 0.01 else ".3f", **ends, **options)


def number_line(values: Tensor) -> Explorer:
    """The grids of E4M3, E5M2, INT8 and E2M1 over values that share one scale, such as a row of a weight.

    values: any shape. The slider makes the scale 2^k times the one of round-to-nearest, at which the largest magnitude
    lands on the end of the grid. Raises UsageError for values that are all zero.
    """
    from labkit import numerics

    formats = {fmt.name: fmt for fmt in numerics.FORMATS}
    row = values.detach().float().flatten().cpu()  # [n]
    if not row.any():
        raise UsageError("all values are zero", "no scale fits them", "take another row")

    def draw(fmt: str, scale: float) -> Figure:
        chosen = formats[fmt]
        s = numerics.scale_for(row, chosen, "per-tensor") * scale  # [1]
        back = numerics.quantize_dequantize(row, s, chosen)
        clipped = float(((row / s > chosen.max_value) | (row / s < chosen.min_value)).float().mean())
        lost = float(((back == 0) & (row != 0)).float().mean())
        said = (
            f"{fmt} with a scale of {scale:.3g} times the usual one: {len(back.unique())} of its "
            f"{len(chosen.values())} values are used, {clipped:.1%} of the weights are clipped, {lost:.1%} become "
            f"zero; relative error {numerics.relative_error(row, back):.4f}."
        )
        return figures.grid_over_values(row, chosen.values() * s, fmt, said)

    choice = Choice("format", ("E4M3", "E5M2", "INT8", "E2M1"), "E4M3")
    return Explorer({"fmt": choice, "scale": Slider("scale ÷ usual scale", 2**-6, 2**6, 0.25, 1.0, power=True)}, draw)


def memory_planner(models: Mapping[str, memory.Config], here: float = 0.0) -> Explorer:
    """Weights, KV cache and activations of a model under a scheme, against the memory of a GPU.

    models: configs by name. here: this machine's GPU memory in GB, which becomes a choice of its own; 0 for none.
    """
    gpus = {**GPUS, **({f"this machine ({here:.0f} GB)": here} if here else {})}

    def draw(model: str, scheme: memory.Scheme, cache: str, batch: float, sequence: float, gpu: str) -> Figure:
        config, requests, tokens, usable = models[model], round(batch), round(sequence), USABLE * gpus[gpu]
        weights = {each: memory.weight_bytes(config, each).total / 1e9 for each in SCHEMES}
        parts = memory.activation_parts(config, 1, min(tokens, PROMPT_TOKENS))
        working = max(parts.attention, parts.mlp) / 1e9  # an engine computes the logits of last positions only
        request = memory.kv_cache_bytes(config, 1, tokens, 1 if cache == "fp8" else 2) / 1e9
        needed, wanted = weights[scheme] + working, requests * request
        if needed >= usable:
            verdict = f"does not fit; {memory.gpus_needed(needed, usable)} such GPUs would hold the weights"
        else:
            held = int((usable - needed) // request)
            waits = "; the others wait" if held < requests else ""
            verdict = f"fits, with a cache for {held:,} such requests at once{waits}"
        said = (
            f"{model} in {scheme} on {gpu} ({usable:.1f} GB usable): {weights[scheme]:.2f} GB of weights, "
            f"{wanted:.2f} GB of {cache} KV cache for {requests:,} requests of {tokens:,} tokens, "
            f"{working:.2f} GB of activations. It {verdict}."
        )
        series = {"weights": list(weights.values()), "KV cache": [wanted] * len(SCHEMES)}
        series["activations"] = [working] * len(SCHEMES)
        return figures.bars(SCHEMES, series, "GB", said, stacked=True, line=(usable, "usable"), chosen=scheme)

    controls: dict[str, Slider | Choice] = {
        "model": Choice("model", tuple(models), next(iter(models))),
        "scheme": Choice("scheme", SCHEMES, "int8-w8a8"),
        "cache": Choice("KV cache", ("bf16", "fp8"), "bf16"),
        "batch": Slider("requests at once", 1, 1024, 1, 32, power=True),
        "sequence": Slider("tokens of each", 128, 131072, 1, 4096, power=True),
        "gpu": Choice("GPU", tuple(gpus), tuple(gpus)[-1] if here else "L4, A10"),
    }
    return Explorer(controls, draw)


def sample_size(accuracy: float = 0.75, differing: float = 0.06) -> Explorer:
    """The chance to see a loss over the number of samples, with paired rows and without.

    accuracy: the baseline's, 0 to 1. differing: share of the rows on which the two models differ, which is never less
    than the loss. Both are where their sliders stand at first, so a lab gives what it measured.
    """

    def draw(accuracy: float, differing: float, loss: float, samples: float) -> Figure:
        lost, n = loss / 100, round(samples)
        apart = max(differing / 100, lost)  # rows that were lost differ
        ways = {"the same rows for both": apart, "other rows for each": None}
        power = {way: [detection_power(n, accuracy, lost, share) for n in COUNTS] for way, share in ways.items()}
        now, alone = (detection_power(n, accuracy, lost, share) for share in ways.values())
        paired, unpaired = (samples_to_detect(accuracy, lost, share) for share in ways.values())
        said = (
            f"A loss of {loss:g} {'point' if loss == 1 else 'points'} from {accuracy:.1%}, the models differing on "
            f"{apart:.1%} of the rows: with {n:,} samples it shows in {now:.0%} of all evaluations if both models "
            f"answer the same rows, in {alone:.0%} if not. For 80% it takes {paired:,} paired samples, or "
            f"{unpaired:,} of each."
        )
        axes, eighty, mark = ("samples", "chance to see the loss"), (0.8, "80%"), (n, f"{n:,} samples")
        figure = figures.curve(COUNTS, power, axes, said, baseline=eighty, mark=mark, log_x=True)
        figure.drawing.axes[0].set_ylim(0, 1.03)
        return figure

    controls = {
        "accuracy": Slider("baseline's accuracy", 0.3, 0.999, 0.001, min(max(round(accuracy, 3), 0.3), 0.999)),
        "differing": Slider("rows that differ, %", 0.5, 30, 0.5, min(max(round(200 * differing) / 2, 1.0), 30)),
        "loss": Slider("loss, points", 0.25, 5, 0.25, 1.0),
        "samples": Slider("samples", 16, 65536, 0.5, 256, power=True),
    }
    return Explorer(controls, draw)


def smoothing(captured: Captured, weight: Tensor, outliers: Sequence[int], alpha: float) -> Explorer:
    """The channels of a layer's input and of its weight, before and after smoothing, and the error in INT8.

    captured: the layer's inputs. weight: [out, in]. outliers: channels to mark. alpha: where the slider stands at
    first. The second control says which numbers of the input share an INT8 scale; the weight has one a row. The error
    is that of 64 tokens and 128 outputs: enough to see it move, few enough to follow a slider.
    """
    from labkit import numerics

    W, x_max = weight.detach().float().cpu(), captured.absmax  # [out, in], [in]
    X, part, w_max = captured.sample[:64], W[:128], numerics.channel_absmax(W)  # [tokens, in], [outputs, in], [in]

    def error(x: Tensor, w: Tensor, share: str) -> float:
        if share == "channel":
            x_hat = numerics.round_to_nearest(x.T.contiguous(), numerics.INT8, "per-channel").T
        else:
            x_hat = numerics.round_to_nearest(x, numerics.INT8, "per-tensor" if share == "tensor" else "per-token")
        w_hat = numerics.round_to_nearest(w, numerics.INT8, "per-channel")
        return numerics.relative_error(X @ part.T, x_hat @ w_hat.T)

    def peak(maxima: Tensor) -> float:
        return float(maxima.max() / maxima.median().clamp(min=1e-12))

    def draw(alpha: float, share: str) -> Figure:
        s = numerics.smoothing_scales(x_max, w_max, alpha)  # [in]
        plain, after = error(X, part, share), error(X / s, part * s, share)
        said = (
            f"{captured.layer}, α = {alpha:.2f}, one INT8 scale of the input for each {share}: the largest channel of "
            f"the input is {peak(x_max):,.0f} times the median one before smoothing and {peak(x_max / s):,.1f} times "
            f"after; of the weight {peak(w_max):,.1f} and {peak(w_max * s):,.1f} times. The output's error goes from "
            f"{plain:.4f} to {after:.4f}."
        )
        panels = {"input": {"before": x_max, "after": x_max / s}, "weight": {"before": w_max, "after": w_max * s}}
        return figures.channel_maxima(panels, outliers, said, {"before": plain, "after": after})

    share = Choice("one scale for each", ("tensor", "channel", "token"), "token")
    return Explorer({"alpha": Slider("α", 0, 1, 0.05, alpha), "share": share}, draw)
