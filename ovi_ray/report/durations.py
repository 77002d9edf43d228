"""Text forms of durations, in seconds, for displays and reports."""

from datetime import timedelta

from ovi_ray.protocol.progress import RemainingTime


def format_duration(seconds: float) -> str:
    """A clock form, rounded to seconds: "0:03:20", "1 day, 1:00:00"."""
    return str(timedelta(seconds=round(seconds)))


def format_remaining(remaining: RemainingTime | None) -> str:
    """The expected time and its range: "5 h 20 min (4 h 50 min to 6 h 2 min)"."""
    if remaining is None:
        return "unknown yet"
    expected, low, high = map(format_duration_in_words, (remaining.expected_s, remaining.low_s, remaining.high_s))
    return expected if low == high else f"{expected} ({low} to {high})"


def format_duration_in_words(seconds: float) -> str:
    """The two largest units: "12.3 s", "3 min 20 s", "7 h 12 min", "1 d 1 h"."""
    if round(seconds, 1) < 60:
        return f"{format_number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next(index for index, (amount, _) in enumerate(parts) if amount)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2] if amount)


def format_number(value: float) -> str:
    """A number with three significant digits, or all digits before the decimal point."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{decimals}f}"
