"""The figures: what is drawn is what was handed in, and refusals name the argument."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mop_jax import plots
from mop_jax.errors import DataError
from mop_jax.plots import evidence, fit, gate, likeness, style
from mop_jax.plots.style import shortened, signed
from tests.figure_reading import mesh_of, notes, offsets, panels, title, y_labels

PERSONA = "You are a warm, enthusiastic movie fan who forgives a weak plot for $5 and a good lead."


def each_figure() -> dict[str, Figure]:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet([5.0, 3.0, 2.0], size=50)
    names = [PERSONA, "dry", "blunt $\\frac{ reviewer"]
    omega = rng.dirichlet(np.ones(4), size=(2, 3))
    return {
        "elbo": plots.elbo_trace(rng.normal(100, 1, 40), converged=True, reason="Flat."),
        "weights": plots.persona_weights(
            weights, names, population_label="9 reviews", temperatures=1 + weights
        ),
        "shares": plots.persona_shares(
            np.stack([weights.mean(0), weights.min(0), weights.max(0)], axis=1),
            np.stack([weights[0]] * 3, axis=1),
            names,
            population_label="9 reviews",
        ),
        "omega": plots.omega_heatmap(omega, names[:2], ["a", "b", "c"], list("wxyz")),
        "map": plots.embedding_map(
            rng.normal(size=(30, 5)),
            rng.normal(size=(20, 5)),
            real_labels=["fresh", "rotten"] * 15,
            simulated_labels=["fresh", "rotten"] * 10,
        ),
        "held_out": plots.held_out_comparison([("mop", -9.0, 0.1)], [("mop", 1.0, 0.1)], "Note."),
        "check": plots.candidate_convergence([2, 4, 8], [0.1, 0.2, 0.21], [0.05, 0.05, 0.05]),
    }


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return each_figure()


def test_same_arrays_same_bytes_whatever_the_reader_s_settings(
    figures: dict[str, Figure], tmp_path: Path
) -> None:
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 30}):
        before = dict(mpl.rcParams)
        for name, figure in each_figure().items():
            plots.save_figure(tmp_path / "second" / f"{name}.png", figure)
        assert dict(mpl.rcParams) == before, "drawing must not change the reader's settings"
    for name, figure in figures.items():
        plots.save_figure(tmp_path / "a" / f"{name}.png", figure)
        saved = (tmp_path / "a" / f"{name}.png").read_bytes()
        if name in ("weights", "map"):  # the layouts with most to move
            plots.save_figure(tmp_path / "b.png", figure)
            assert saved == (tmp_path / "b.png").read_bytes(), name
        assert saved == (tmp_path / "second" / f"{name}.png").read_bytes(), name
        assert saved.startswith(b"\x89PNG")
        assert int.from_bytes(saved[16:20], "big") == round(style.WIDTH * style.DPI)
        assert b"tEXt" not in saved, "no version or date in the file"
    assert {path.name for path in (tmp_path / "a").iterdir()} == {f"{name}.png" for name in figures}


def test_everything_stays_on_the_page(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        width, height = figure.get_size_inches()
        box = figure.get_tightbbox()
        assert box.x0 >= 0, name
        assert box.y0 >= 0, name
        assert box.x1 <= width, name
        assert box.y1 <= height, name


@pytest.mark.parametrize("module", [evidence, fit, gate, likeness, style])
def test_no_pyplot(module: Any) -> None:
    imported = {
        name
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None), *(alias.name for alias in node.names)]
    }
    assert not {name for name in imported if name and "pyplot" in name}


# --- ELBO trace ---------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 5, 8, 99])
def test_running_mean_is_the_mean_of_its_window(window: int) -> None:
    values = np.random.default_rng(window).normal(size=23)
    expected = [
        values[max(0, t - (window - 1) // 2) : t + window // 2 + 1].mean() for t in range(23)
    ]
    np.testing.assert_allclose(plots.running_mean(values, window), expected, rtol=0, atol=1e-12)


def test_elbo_axis_is_cut_so_that_the_end_is_readable() -> None:
    rng = np.random.default_rng(1)
    losses = 500 + 1e6 * np.exp(-np.arange(1000) / 5) + rng.normal(0, 1, 1000)
    figure = plots.elbo_trace(losses, smoothed=losses - 1, converged=False, reason="Still falling.")
    whole, end = panels(figure)
    low, high = whole.get_ylim()
    assert low < losses.min()
    assert high < 600
    assert f"first step: {losses[0]:,.0f} ↑" in notes(whole)
    raw, smooth = whole.lines
    np.testing.assert_array_equal(raw.get_ydata(), losses)
    np.testing.assert_array_equal(smooth.get_ydata(), losses - 1)
    np.testing.assert_array_equal(end.lines[0].get_xdata(), np.arange(501, 1001))
    means = [line.get_ydata()[0] for line in end.lines[2:]]
    np.testing.assert_allclose(means, [losses[500:750].mean(), losses[750:].mean()])
    assert "was not shown to settle" in title(figure)


def test_elbo_axis_is_whole_when_nothing_towers_above() -> None:
    losses = np.linspace(2, 1, 100)
    figure = plots.elbo_trace(losses, converged=True, reason="Flat.")
    assert panels(figure)[0].get_ylim()[1] > 2
    assert not notes(panels(figure)[0])
    assert "The fit settled" in title(figure)


def test_elbo_of_a_single_step() -> None:
    figure = plots.elbo_trace([3.0], converged=False, reason="One step.")
    assert panels(figure)[0].get_ylim()[0] < 3 < panels(figure)[0].get_ylim()[1]


@pytest.mark.parametrize(
    "losses", [np.full(50, 1234.567), np.linspace(2e6, 2e6 + 1, 50), np.array([3.0, 2.0, 1.0])]
)
def test_ticks_of_losses_and_steps_differ(losses: np.ndarray) -> None:
    figure = plots.elbo_trace(losses, converged=True, reason="Flat.")
    for axes in panels(figure):
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = axis.get_major_locator()()
            labels = axis.get_major_formatter().format_ticks(ticks)
            shown = [
                (tick, label)
                for tick, label in zip(ticks, labels)
                if limits[0] <= tick <= limits[1]
            ]
            assert len({label for _, label in shown}) == len(shown) >= 2
            for tick, label in shown:
                written = float(label.replace(",", "").replace("−", "-"))
                assert written == pytest.approx(tick, abs=0.01 * np.diff(ticks).min())


def test_means_of_the_quarters_are_told_apart() -> None:
    losses = np.repeat([9000.0, 5000.0, 1000.02, 1000.01], 10)
    end = panels(plots.elbo_trace(losses, converged=True, reason="Flat."))[1]
    assert notes(end) == ["third quarter\nmean 1,000.02", "last quarter\nmean 1,000.01"]


def test_the_windows_that_were_judged_are_those_that_are_shown() -> None:
    losses = np.concatenate([np.linspace(50, 10, 300), np.repeat([9.0, 8.0, 7.0, 6.0], 75)])
    windows = [(226, 300), (451, 525), (526, 600)]
    figure = plots.elbo_trace(losses, converged=False, reason="Falling.", windows=windows)
    end = panels(figure)[1]
    np.testing.assert_array_equal(end.lines[0].get_xdata(), np.arange(226, 601))
    assert [tuple(line.get_xdata()) for line in end.lines[2:]] == windows
    means = [losses[first - 1 : last].mean() for first, last in windows]
    np.testing.assert_allclose([line.get_ydata()[0] for line in end.lines[2:]], means)
    assert notes(end)[1:] == ["451–525\nmean 7.00", "526–600\nmean 6.00"]
    with pytest.raises(DataError, match="`windows` holds 1–601"):
        plots.elbo_trace(losses, converged=True, reason="", windows=[(1, 601)])


# --- Persona weights ----------------------------------------------------------------------------


def test_personas_are_sorted_and_temperatures_follow() -> None:
    rng = np.random.default_rng(2)
    weights = rng.dirichlet([4, 16, 1, 9], size=300)
    taus = np.exp(rng.normal([0.3, 0.0, -0.3, 0.1], 0.01, size=(300, 4)))
    figure = plots.persona_weights(weights, list("abcd"), population_label="x", temperatures=taus)
    left, right = panels(figure)
    assert y_labels(left) == ["b", "d", "a", "c"]
    order = [1, 3, 0, 2]
    for axes, draws in ((left, weights), (right, taus)):
        (points,) = offsets(axes)
        np.testing.assert_array_equal(points[:, 1], range(4))
        np.testing.assert_allclose(points[:, 0], draws.mean(axis=0)[order])
    assert left.get_ylim()[0] > left.get_ylim()[1], "the heaviest on top"
    assert [axes.lines[0].get_xdata()[0] for axes in panels(figure)] == [0.25, 1.0]


def test_intervals_are_the_equal_tailed_quantiles() -> None:
    # 101 evenly spaced draws: the q-quantile is the start plus q times the range.
    first = np.random.default_rng(3).permutation(np.linspace(0.6, 0.8, 101))
    figure = plots.persona_weights(
        np.stack([first, 1 - first], axis=1), ["a", "b"], population_label="x"
    )
    lines: dict[Any, Any] = {
        c.get_label(): c for c in panels(figure)[0].collections if isinstance(c, LineCollection)
    }
    for label, low, high in (("94%", 0.606, 0.794), ("50%", 0.65, 0.75)):
        segments = np.array([s[:, 0] for s in lines[label].get_segments()])
        np.testing.assert_allclose(segments, [[low, high], [1 - high, 1 - low]], atol=1e-9)
    assert lines["50%"].get_linewidth()[0] > lines["94%"].get_linewidth()[0]


def test_colour_says_whether_the_interval_excludes_the_reference() -> None:
    draws = np.linspace(-0.01, 0.01, 101)
    weights = np.stack([0.5 + draws, 0.3 - draws + 0.0333, np.full(101, 1 - 0.8333)], axis=1)
    figure = plots.persona_weights(weights, list("abc"), population_label="x")
    outer = panels(figure)[0].collections[0]
    colours = [mpl.colors.to_hex(colour).upper() for colour in outer.get_color()]
    assert colours == [style.BLUE, style.GREY, style.BLUE]


def test_equal_draws_are_a_point_estimate() -> None:
    weights = np.tile([0.9, 0.1], (50, 1))
    figure = plots.persona_weights(weights, ["a", "b"], population_label="x")
    assert figure.texts[1].get_text() == "Point estimates: no intervals."
    colours = panels(figure)[0].collections[0].get_color()
    assert {mpl.colors.to_hex(colour).upper() for colour in colours} == {style.GREY}
    # Equal weights (a uniform gate) beside temperatures that have a posterior.
    taus = np.random.default_rng(4).normal(1.5, 0.1, (50, 2))
    figure = plots.persona_weights(weights, ["a", "b"], population_label="x", temperatures=taus)
    assert "94% intervals" in figure.texts[1].get_text()
    colours = panels(figure)[1].collections[0].get_color()
    assert {mpl.colors.to_hex(colour).upper() for colour in colours} == {style.BLUE}


def test_only_the_heaviest_of_many_personas_and_the_figure_says_so() -> None:
    weights = np.full((5, 40), 1 / 40)
    weights[:, 7] += 0.01
    weights[:, 8] -= 0.01
    names = [f"p{k}" for k in range(40)]
    figure = plots.persona_weights(weights, names, population_label="x", max_personas=3)
    assert y_labels(panels(figure)[0]) == ["p7", "p0", "p1"]
    assert "3 heaviest of 40 personas, with 8% of the weight" in figure.texts[1].get_text()


def test_long_names_are_wrapped_to_two_lines() -> None:
    figure = plots.persona_weights([[0.5, 0.5]], [PERSONA, "b"], population_label="x")
    label = y_labels(panels(figure)[0])[0]
    assert label == "You are a warm, enthusiastic movie fan\nwho forgives a weak plot for $5 and a…"
    assert "no intervals" in figure.texts[1].get_text()


def test_shortened() -> None:
    assert shortened("one  two\nthree", 20) == "one two three"
    assert shortened("one two, three four", 9) == "one two…"
    assert shortened("a" * 30, 10) == "a" * 9 + "…"
    assert max(map(len, shortened("word " * 50, 20, 2).split("\n"))) <= 20


def test_signed() -> None:
    assert [signed(x) for x in (0.834, -0.066, 0.001, -0.001)] == ["+0.83", "−0.07", "0.00", "0.00"]


# --- Exemplar weights ---------------------------------------------------------------------------


def test_omega_cells_order_and_symmetric_colour_limits() -> None:
    omega = np.random.default_rng(4).dirichlet(np.ones(6), size=(2, 3))
    figure = plots.omega_heatmap(omega, ["p", "q"], list("abc"), list("uvwxyz"))
    shown = panels(figure)[:2]
    order = sorted(range(6), key=lambda j: -omega[..., j].mean())
    assert [t.get_text() for t in shown[-1].get_xticklabels()] == ["uvwxyz"[j] for j in order]
    limits = set()
    for axes, table in zip(shown, omega):
        mesh = mesh_of(axes)
        np.testing.assert_allclose(mesh.get_array(), np.log2(table[:, order] * 6))
        limits.add(mesh.get_clim())
        assert y_labels(axes) == ["a", "b", "c"]
        assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first context on top"
    ((low, high),) = limits
    assert low == -high
    assert high == pytest.approx(np.quantile(np.abs(np.log2(omega * 6)), 0.99))


def test_omega_left_out_is_masked_and_uniform_is_not_inflated() -> None:
    omega = np.array([[[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]])
    figure = plots.omega_heatmap(omega, ["p"], ["a", "b"], list("xyz"))
    mesh = mesh_of(panels(figure)[0])
    mask = np.ma.getmaskarray(mesh.get_array())
    np.testing.assert_array_equal(mask, [[False, False, True], [False] * 3])
    assert "left out" in figure.texts[1].get_text()
    flat = plots.omega_heatmap(np.full((1, 2, 3), 1 / 3), ["p"], ["a", "b"], list("xyz"))
    mesh = mesh_of(panels(flat)[0])
    assert mesh.get_clim() == (-0.25, 0.25)


def test_omega_shows_the_most_used_of_many_exemplars() -> None:
    omega = np.arange(1.0, 101.0)[None, None] / 5050
    figure = plots.omega_heatmap(
        omega,
        ["p"],
        ["a"],
        [str(j) for j in range(100)],
        max_exemplars=3,
        note="One of 4 personas.",
    )
    assert [t.get_text() for t in panels(figure)[0].get_xticklabels()] == ["99", "98", "97"]
    told = " ".join(figure.texts[1].get_text().split())
    assert "3 most used of 100 exemplars, with 6% of the weight" in told
    assert told.endswith("One of 4 personas.")


# --- Refusals -----------------------------------------------------------------------------------

HALF = np.full((4, 2), 0.5)
OMEGA = np.full((1, 2, 2), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.elbo_trace([], converged=True, reason=""), r"`losses` has shape \[0\]"),
        (lambda: plots.elbo_trace([1, np.nan], converged=True, reason=""), "`losses` holds NaN"),
        (
            lambda: plots.elbo_trace([1, 2], smoothed=[1], converged=True, reason=""),
            r"`smoothed` has shape \[1\]; accepted: \[num_steps\] with num_steps = 2",
        ),
        (lambda: plots.running_mean([1.0], 0), "`window` is 0"),
        (
            lambda: plots.persona_weights([0.5, 0.5], ["a", "b"], population_label="x"),
            r"`weights` has shape \[2\]; accepted: \[S, K\]",
        ),
        (
            lambda: plots.persona_weights(HALF, ["a"], population_label="x"),
            "`names` has 1 entries; accepted: one for each persona: 2",
        ),
        (
            lambda: plots.persona_weights(2 * HALF, ["a", "b"], population_label="x"),
            "`weights` must be",
        ),
        (
            lambda: plots.persona_weights(
                HALF, ["a", "b"], population_label="x", temperatures=HALF[:2]
            ),
            "`temperatures` has shape .* S = 4, K = 2",
        ),
        (
            lambda: plots.persona_weights(
                HALF, ["a", "b"], population_label="x", temperatures=0 * HALF
            ),
            "`temperatures` must be positive",
        ),
        (
            lambda: plots.persona_weights(HALF, ["a", "b"], population_label="x", max_personas=0),
            "`max_personas`",
        ),
        (
            lambda: plots.omega_heatmap(OMEGA[0], ["p"], ["a", "b"], ["x", "y"]),
            r"`omega` has shape \[2, 2\]",
        ),
        (lambda: plots.omega_heatmap(OMEGA, [], ["a", "b"], ["x", "y"]), "`persona_names`"),
        (lambda: plots.omega_heatmap(OMEGA, ["p"], ["a"], ["x", "y"]), "`record_names`"),
        (lambda: plots.omega_heatmap(OMEGA, ["p"], ["a", "b"], ["x"]), "`exemplar_names`"),
        (lambda: plots.omega_heatmap(2 * OMEGA, ["p"], ["a", "b"], ["x", "y"]), "`omega` must be"),
        (
            lambda: plots.omega_heatmap(OMEGA, ["p"], ["a", "b"], ["x", "y"], max_exemplars=0),
            "`max_exemplars`",
        ),
    ],
)
def test_refusals_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()
