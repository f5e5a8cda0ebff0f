"""Small tables, shown as Markdown: readable on GitHub, in Colab and in a diff."""

from collections.abc import Iterable, Sequence


def show_table(header: Sequence[str], rows: Iterable[Sequence[object]], right: bool = True) -> None:
    """Display a table; numbers come formatted, columns after the first are aligned `right`."""
    from IPython.display import Markdown, display

    display(Markdown(markdown_table(header, rows, right)))


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], right: bool = True
) -> str:
    """The same table as text."""
    lines = [list(map(str, header)), ["---"] + ["---:" if right else "---"] * (len(header) - 1)]
    lines += [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
