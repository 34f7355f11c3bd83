"""The look shared by every figure of a run, and the checks of what is handed to them.

Figures are built with matplotlib's object-oriented interface inside `styled`, which applies one
fixed style on top of matplotlib's defaults and puts the reader's own settings back afterwards: the
same arrays give the same picture in a script, a notebook and a test. Sizes are chosen for a README
column of about 900 pixels.
"""

from __future__ import annotations

import functools
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from os import PathLike
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import regex
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from rich.cells import cell_len

from mop_jax import segmentation
from mop_jax.atomic import write_bytes
from mop_jax.errors import DataError
from mop_jax.plots.fonts import MAIN_FONT, collected_needs, drawable, quiet_lookup, warn_of

# Okabe and Ito's blue and vermillion: told apart under every common colour blindness, and in print.
BLUE = "#0072B2"
VERMILLION = "#D55E00"
INK = "#222222"
GREY = "#6E6E6E"
PALE = "#C9C9C9"
FAINT = "#F1F1F1"

DPI = 160
WIDTH = 8.5  # inches: 1,360 pixels, shown at two thirds in a README
MARGIN = 0.12  # inches

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "font.family": [MAIN_FONT],  # comes with matplotlib, so it is the same everywhere
    "font.size": 8.5,
    "text.color": INK,
    # Personas and reviews are plain text: a dollar sign is money, not mathematics.
    "text.parse_math": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.solid_capstyle": "butt",
}

# A hyphen before a number, as Python writes negative ones; not one between words or numbers.
_MINUS = regex.compile(r"(?<![^\s(\[])-(?=\.?\d)")

P = ParamSpec("P")


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's defaults plus `STYLE` within the block; the reader's settings after it."""
    with mpl.rc_context(), quiet_lookup():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorates a function that draws a figure: fixed style, layout settled once and for all.

    A figure with characters that the main font lacks is drawn a second time, with the installed
    fonts that have them; all others look the same whatever is installed.
    """

    @functools.wraps(plot)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style(), collected_needs() as needs:
            with warnings.catch_warnings():
                # A layout within this first drawing may lack the fonts of the second.
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                figure = plot(*args, **kwargs)
            if needs.families:
                mpl.rcParams["font.family"] = [MAIN_FONT, *needs.families]
                figure = plot(*args, **kwargs)
            warn_of(needs.missing)
            # A constrained layout that ran again at every save could move by a pixel.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
        return figure

    return wrapper


def save_figure(path: str | PathLike[str], figure: Figure) -> None:
    """Writes `figure` to `path` as PNG, atomically; the same figure gives the same bytes.

    Raises:
        FaultError: if the disk is full.
    """
    buffer = BytesIO()
    with style():
        # Without the version of matplotlib, which is otherwise written into the file.
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def new_figure(title: str, subtitle: str, *, body_height: float, note: str = "") -> Figure:
    """A figure of `WIDTH` with its heading set, and the layout engine kept to what is below.

    Args:
        title: says what is seen.
        subtitle: says how to read it; a line break starts a new line.
        body_height: inches for the panels.
        note: a line of small print under the panels.
    """
    title, subtitle, note = (_MINUS.sub("−", text) for text in (title, subtitle, note))
    title_lines = _balanced(drawable(title, "bold"), 84)
    parts = [drawable(part) for part in subtitle.splitlines()]
    subtitle_lines = [line for part in parts for line in _balanced(part, 130)]
    note_lines = _balanced(drawable(note), 138)
    title_height = 0.22 * len(title_lines)
    top = MARGIN + title_height + 0.165 * len(subtitle_lines) + 0.12
    bottom = MARGIN / 2 + (0.16 * len(note_lines) + 0.14 if note_lines else 0.0)
    height = top + body_height + bottom
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    side = MARGIN / WIDTH
    figure.text(
        side,
        1 - MARGIN / height,
        "\n".join(title_lines),
        fontsize=11.5,
        fontweight="bold",
        va="top",
    )
    figure.text(
        side,
        1 - (MARGIN + title_height + 0.03) / height,
        "\n".join(subtitle_lines),
        color=GREY,
        va="top",
        linespacing=1.3,
    )
    if note_lines:
        figure.text(
            side,
            MARGIN / height,
            "\n".join(note_lines),
            color=GREY,
            fontsize=8,
            va="bottom",
            linespacing=1.3,
        )
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(side, bottom / height, 1 - 2 * side, body_height / height), wspace=0.03)  # type: ignore[call-arg]
    return figure


def _balanced(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, as few as can be and then as even as can be."""
    lines = wrapped(text, width)
    if len(lines) < 2:
        return lines
    widths = range(cell_len(text) // len(lines), width + 1)
    return next(even for w in widths if len(even := wrapped(text, w)) == len(lines))


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; Chinese, Japanese and Korean characters take two.

    Scripts without blanks are broken between any two characters, long words where they must be.
    """
    if len(text) == cell_len(text) and not segmentation.has_unspaced(text):
        return textwrap.wrap(text, width)
    lines = [""]
    for chunk in text.split():
        glue = " " if lines[-1] else ""
        for word in segmentation.words(chunk):
            if cell_len(lines[-1] + glue + word) <= width:
                lines[-1] += glue + word
            else:
                lines += _chopped(word, width)
            glue = ""
    return [line for line in lines if line]


def _chopped(word: str, width: int) -> list[str]:
    """A word in pieces of at most `width` columns; what looks like one character stays whole."""
    pieces = [""]
    for cluster in regex.findall(r"\X", word):
        if pieces[-1] and cell_len(pieces[-1] + cluster) > width:
            pieces.append("")
        pieces[-1] += cluster
    return pieces


def text_rows(axes: Axes) -> None:
    """Turns the y axis into a list of names: no line, no ticks, faint guides to the data."""
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.9)


def shortened(text: str, width: int, lines: int = 1) -> str:
    """`text` wrapped to at most `lines` lines of `width` columns, with an ellipsis if cut.

    What no font can draw is put into words; see `mop_jax.plots.fonts`.
    """
    broken = wrapped(drawable(text), width)
    if len(broken) <= lines:
        return "\n".join(broken)
    last = broken[lines - 1]
    if cell_len(last) >= width:  # make room for the ellipsis, between two words if there are two
        last = _chopped(last, width - 1)[0].rsplit(" ", 1)[0]
    return "\n".join([*broken[: lines - 1], last.rstrip(" ,;:.(、，。") + "…"])


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign and a true minus: +0.83, −0.07, 0.00."""
    rounded = round(value, digits) + 0.0  # −0.0 becomes 0.0
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0.0:.{digits}f}"


def as_array(name: str, values: ArrayLike, dims: str, **sizes: int) -> np.ndarray:
    """`values` as float64 of the named dimensions, all finite.

    Args:
        name: what a refusal calls it.
        values: the array.
        dims: dimension letters, such as "S K".
        **sizes: the letters whose size is already known.

    Raises:
        DataError: if the shape, the type or a value is not as said.
    """
    letters = dims.split()
    known = ", ".join(f"{letter} = {sizes[letter]}" for letter in letters if letter in sizes)
    accepted = f"[{', '.join(letters)}]" + (f" with {known}" if known else "")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"`{name}` is not an array of numbers; accepted: {accepted}.") from error
    fits = array.ndim == len(letters) and all(
        size == sizes.get(letter, max(size, 1)) for letter, size in zip(letters, array.shape)
    )
    if not fits:
        raise DataError(
            f"`{name}` has shape {list(array.shape)}; accepted: {accepted}, no dimension empty."
        )
    if not np.isfinite(array).all():
        raise DataError(f"`{name}` holds NaN or infinite values; accepted: finite numbers.")
    return array


def as_names(name: str, values: Sequence[str], letter: str, size: int) -> list[str]:
    """`values` as a list of `size` strings.

    Raises:
        DataError: if their number is not `size`.
    """
    names = [str(value) for value in values]
    if len(names) != size:
        raise DataError(
            f"`{name}` has {len(names)} entries; accepted: one for each {letter}: {size}."
        )
    return names
