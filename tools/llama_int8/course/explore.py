"""Interactive when live, a picture when not: a control moves, a figure is drawn again.

One output carries the widgets and a PNG of the first state, so that a page without a kernel shows
the picture. The figure is an `ipywidgets.Image` that the controls' observer redraws: that works
with ipywidgets 7 (Colab) and 8 alike.
"""

from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from llama_int8.course.plots import png, show_png

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def explore(draw: Callable[..., Figure], alt: str, **controls: ipywidgets.Widget) -> None:
    """Show `controls` above the figure that `draw(**values)` returns for them.

    `controls`: ipywidgets with a `value`, by the name of the argument that they set. An error in
    `draw` stands under the controls instead of the picture's next state.
    """

    def picture() -> bytes:
        open_before = set(plt.get_fignums())
        try:
            return png(draw(**{name: control.value for name, control in controls.items()}))
        finally:  # a half-drawn figure, too: the next cell would show it
            for number in set(plt.get_fignums()) - open_before:
                plt.close(number)

    first = picture()
    layout = ipywidgets.Layout(max_width="100%", align_self="flex-start")
    image = ipywidgets.Image(value=first, format="png", layout=layout)
    message = ipywidgets.Label()

    def redraw(_change: object) -> None:
        try:
            image.value = picture()
            message.value = ""
        except Exception as error:  # a callback has nobody above it who could see the error
            message.value = f"{type(error).__name__}: {error}"

    for name, control in controls.items():
        control.description = control.description or name
        control.style.description_width = "7em"  # the default cuts longer names
        control.observe(redraw, names="value")
    box = ipywidgets.VBox([*controls.values(), message, image])
    # Kept on the picture's control: ipywidgets 8 may otherwise collect the box.
    image.explore_box = box
    view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
    show_png(first, alt, **{WIDGET_VIEW: view})
