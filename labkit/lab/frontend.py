"""Widgets: a question with a field for the answer, and explorers. A layer on top: without a front end nothing is lost.

Only a front end that shows cells (JupyterLab, Notebook, VS Code) says with each cell which one it is. papermill and
nbclient don't, and a widget would show nothing in what they save.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.lab.shell import current_shell

if TYPE_CHECKING:
    from labkit.explorers import Choice, Explorer, Slider
    from labkit.figures import Figure

LABEL = {"description_width": "initial"}
DPI = 90  # of a picture that follows a slider; drawing takes longer with more


def present() -> bool:
    """Whether a front end sent the cell that is running."""
    shell = current_shell()
    if shell is None or not hasattr(shell, "get_parent"):
        return False
    return bool(shell.get_parent().get("metadata", {}).get("cellId"))


def ask(question: str, guess: float, answered: Callable[[float], None]) -> None:
    """A question with a field; `answered` is called with each number that is typed into it."""
    import ipywidgets
    from IPython.display import display

    field = ipywidgets.FloatText(
        value=guess, description="Your guess:", step=None, style=LABEL, layout=ipywidgets.Layout(width="14em")
    )
    field.observe(lambda change: answered(float(change["new"])), names="value")
    display(ipywidgets.VBox([ipywidgets.HTML(html.escape(question)), field]))


def show(explorer: Explorer) -> None:
    """The controls of an explorer over its picture, which is drawn again with each change.

    A page that can't show widgets, such as a saved notebook on the web, shows the picture of the default state.
    """
    import ipywidgets
    from IPython.display import display

    controls = {name: _widget(control) for name, control in explorer.controls.items()}
    first = explorer.at()
    shown = ipywidgets.HTML(value=picture(first))

    def redraw(_: Any) -> None:
        try:
            state = {name: _value(control, controls[name].value) for name, control in explorer.controls.items()}
            shown.value = picture(explorer.at(**state))
        except LabError as error:  # a callback has no cell to show it in
            shown.value = f"<pre>{html.escape(str(error))}</pre>"

    for widget in controls.values():
        widget.observe(redraw, names="value")
    wrap = ipywidgets.Layout(flex_flow="row wrap")
    box = ipywidgets.VBox([ipywidgets.Box(list(controls.values()), layout=wrap), shown])
    bundle = box._repr_mimebundle_() | {"image/png": _png(first), "text/plain": first.description}
    display(bundle, raw=True)


def _widget(control: Slider | Choice) -> Any:
    import ipywidgets

    from labkit.explorers import Choice

    if isinstance(control, Choice):
        return ipywidgets.Dropdown(options=control.options, value=control.value, description=control.label, style=LABEL)
    kind = ipywidgets.FloatSlider
    value, form, more = control.value, ".2f" if control.step >= 0.01 else ".3f", {}
    if control.power:
        kind, value, more = ipywidgets.FloatLogSlider, 2.0**control.value, {"base": 2}
        form = ",.0f" if control.low >= 0 else ".3g"
    return kind(
        value=value,
        min=control.low,
        max=control.high,
        step=control.step,
        description=control.label,
        readout_format=form,
        style=LABEL,
        **more,
    )


def _value(control: Slider | Choice, shown: Any) -> Any:
    """A widget's value as the explorer takes it: a power of two by its exponent, on a step of the slider."""
    from labkit.explorers import Slider

    if isinstance(control, Slider) and control.power:
        return round(math.log2(shown) / control.step) * control.step
    return shown


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.drawing.savefig(out, format="png", dpi=DPI)
    return out.getvalue()


def picture(figure: Figure) -> str:
    """A picture with its description, as text for those who can't see it and as the sentence under it."""
    said, data = html.escape(figure.description, quote=True), base64.b64encode(_png(figure)).decode()
    return f'<img alt="{said}" src="data:image/png;base64,{data}"><p><em>{said}</em></p>'
