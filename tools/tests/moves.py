"""A cell for the end of a notebook: it moves every control of every interactive figure.

It runs inside the notebook's kernel, under whatever ipywidgets is there, and fails where no move of
a control changes the picture, or where a move leaves an error under the controls.
"""

from pathlib import Path

import nbformat


def has_controls(path: Path) -> bool:
    """Whether a notebook has an interactive figure."""
    cells = nbformat.read(path, as_version=4).cells
    return any(cell.cell_type == "code" and "explore(" in cell.source for cell in cells)


CELL = """\
def _move_every_control():  # a function, so that no name of the notebook gets another meaning
    import gc

    import ipywidgets

    def other_values(control):
        if hasattr(control, "options"):
            values = [o[1] if isinstance(o, tuple) else o for o in control.options]
        elif isinstance(control.value, str):
            values = [control.value + " Again."]
        else:
            values = [control.min + control.step, control.max, control.min]
        return [value for value in values if value != control.value]

    # `isinstance` would wake lazy objects that have nothing to do with figures.
    images = [o for o in gc.get_objects() if issubclass(type(o), ipywidgets.Image)]
    figures = [image for image in images if hasattr(image, "explore_box")]
    assert figures, "the notebook has no interactive figure"
    moved = 0
    for figure in figures:
        *controls, message, _ = figure.explore_box.children
        for control in controls:
            first, before, changed = control.value, figure.value, False
            for value in other_values(control)[:4]:
                control.value = value
                assert message.value == "", message.value
                changed = changed or figure.value != before
            assert changed, f"{control.description!r} changes nothing"
            control.value = first
            assert figure.value == before, f"{control.description!r} does not lead back"
            moved += 1
    print(f"{len(figures)} figures, {moved} controls, ipywidgets {ipywidgets.__version__}")


_move_every_control()
"""
