"""Markdown tables."""

from collections.abc import Iterable, Sequence

ABSENT = "–"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]], digits: int = 4) -> str:
    """A Markdown table that ends in a newline: the first column is a title, the others are aligned to the right.

    digits: decimals of floats. None becomes a dash; ``|`` in a cell is escaped.
    """

    def cell(value: object) -> str:
        if value is None:
            return ABSENT
        text = f"{value:.{digits}f}" if isinstance(value, float) else str(value)
        return text.replace("|", "\\|")

    lines = [header, ["---", *["---:"] * (len(header) - 1)], *(map(cell, row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
