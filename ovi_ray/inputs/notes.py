"""Wording of notes on rows: one line for all rows that have the same."""

from collections.abc import Sequence

MAX_ROWS_NAMED = 8  # as many are named one by one; of more, the first few
_FIRST_ROWS_NAMED = 3


def name_rows(rows: Sequence[object]) -> str:
    """Such as "rows 3 and 7", or "rows 3, 7, 9 and 1,204 more". A row is its number, or text that begins with it."""
    if len(rows) == 1:
        return f"row {rows[0]}"
    if len(rows) <= MAX_ROWS_NAMED:
        named, last = rows[:-1], str(rows[-1])
    else:
        named, last = rows[:_FIRST_ROWS_NAMED], f"{len(rows) - _FIRST_ROWS_NAMED:,} more"
    return f"rows {', '.join(map(str, named))} and {last}"


def rows_have(rows: Sequence[object]) -> str:
    """The beginning of a note: "row 3 has", "rows 3 and 7 have"."""
    return f"{name_rows(rows)} {'has' if len(rows) == 1 else 'have'}"
