"""The day that chat templates are told: always the same, and in English.

Templates that write today's date would make prompts differ from day to day, and by the locale of
the process.
"""

from __future__ import annotations

import datetime

DEFAULT_DATE = datetime.date(2024, 7, 26)
"""What templates that ask for the day are told: the day that Llama 3.1's and 3.2's fall back to."""

_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# Longer codes first: what one stands for may hold others.
_CODES = ("%F", "%T", "%R", "%D", "%B", "%b", "%h", "%A", "%a", "%p", "%-d", "%-m", "%e", "%d",
          "%m", "%Y", "%y", "%j", "%H", "%I", "%M", "%S")  # fmt: skip


def fixed_day(date: datetime.date) -> str:
    """Jinja source of a `strftime_now` that tells this day, at midnight, to go before a template.

    A function could not be handed over: templates are given plain data only.
    """
    told = "".join(f" | replace('{code}', '{in_words(date, code)}')" for code in _CODES)
    # Jinja drops the line's end behind a block, and what follows begins a line as before.
    return "{% macro strftime_now(format) %}{{ format" + told + " }}{% endmacro %}\n"


def in_words(date: datetime.date, form: str) -> str:
    """`strftime` of a day at midnight, in English whatever the locale."""
    month, day = _MONTHS[date.month - 1], _DAYS[date.weekday()]
    names = {
        "%F": "%Y-%m-%d", "%T": "%H:%M:%S", "%R": "%H:%M", "%D": "%m/%d/%y",
        "%B": month, "%b": month[:3], "%h": month[:3], "%A": day, "%a": day[:3], "%p": "AM",
        "%-d": str(date.day), "%-m": str(date.month), "%e": f"{date.day:2}",
    }  # fmt: skip
    for code, name in names.items():
        form = form.replace(code, name)
    return datetime.datetime(date.year, date.month, date.day).strftime(form)
