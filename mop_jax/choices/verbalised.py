"""Shares that a language model states in words: what is asked, and how its answers are read."""

from __future__ import annotations

import re

import numpy as np

from mop_jax.survey.questions import Question

_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
# A list's own numbers, which are no shares.
_ENUMERATION = re.compile(r"^\s*\d+\s*[.)]\s+", re.MULTILINE)
# Between an option's text and its number.
_NEAR = 40


def verbalised_text(question: Question, person: str) -> str:
    """What is asked: how many of a hundred such people would choose each option."""
    lines = "\n".join(f"{option}: ... %" for option in question.options)
    return (
        f"{question.text}\nThink of 100 people like this: {person}. How many of them would give "
        f"each answer? Write a percentage behind each line, so that they add up to 100.\n{lines}"
    )


def read_shares(question: Question, answer: str) -> np.ndarray | None:
    r"""Shares that an answer states, [M], summing to one; None where it states none.

    A number counts for the option whose text it follows. Where no option's text is repeated, as
    many numbers as there are options count in their order.

    Example:
        >>> question = Question("vote", "Did you vote?", ("Yes", "No"))
        >>> read_shares(question, "Yes: 60 %\nNo: 20 %").tolist()
        [0.75, 0.25]
    """
    text = _ENUMERATION.sub("", answer)
    # The longest first, each taken out: an option may be the beginning of another.
    left = text.casefold()
    values = np.full(question.num_options, np.nan)
    for m in sorted(range(question.num_options), key=lambda m: -len(question.options[m])):
        option = re.escape(question.options[m].casefold())
        found = re.search(rf"(?<!\w){option}(?!\w)([^\d\n]{{0,{_NEAR}}})({_NUMBER.pattern})", left)
        if found:
            values[m] = float(found[2].replace(",", "."))
            left = left[: found.start()] + "\n" + left[found.end() :]
    if np.isnan(values).all():
        numbers = [float(n.replace(",", ".")) for n in _NUMBER.findall(text)]
        if len(numbers) != question.num_options:
            return None
        values = np.asarray(numbers)
    values = np.nan_to_num(values)
    total = values.sum()
    return values / total if total > 0 else None
