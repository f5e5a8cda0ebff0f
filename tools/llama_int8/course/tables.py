"""Small tables, shown as Markdown: readable on GitHub, in Colab and in a diff."""

from collections.abc import Iterable, Sequence


def show_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Display a table; numbers come formatted, columns after the first are aligned right."""
    from IPython.display import Markdown, display

    display(Markdown(markdown_table(header, rows)))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same table as text."""
    lines = [list(map(str, header)), ["---"] + ["---:"] * (len(header) - 1)]
    lines += [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
