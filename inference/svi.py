"""Stochastic variational inference for mixture-of-personas models.

`fit_svi` is NumPyro's `SVI.run` with what a long job needs: progress with an ETA, minibatches, a
named refusal at the first loss that is not a number, and a `ConvergenceReport` that says whether
the run was long enough. Same key, same data: same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI, init_to_sample
from numpyro.infer.autoguide import AutoDelta, AutoGuide, AutoLaplaceApproximation
from numpyro.primitives import Messenger

from mop_jax import progress as progress_bars
from mop_jax.errors import DataError, FaultError
from mop_jax.inference.checkpoints import FitCheckpoints, Progress, fingerprint
from mop_jax.inference.convergence import ConvergenceReport, convergence_report
from mop_jax.inference.guides import (
    DEFAULT_GUIDE,
    Guide,
    compiled_quickly,
    guide_name,
    make_guide,
    make_loss,
    prepare_guide,
    start_at,
)
from mop_jax.models import checks
from mop_jax.models.data import MixtureData
from mop_jax.models.mixture import mixture_of_personas
from mop_jax.models.scales import LEARNT_SCALE


class SVIFit(NamedTuple):
    """A fitted guide.

    Attributes:
        params: the guide's parameters.
        guide: the guide, whose `sample_posterior(rng_key, params, …)` draws from it; None for a
            model without latent sites, which has nothing to fit.
        losses: negative ELBO of every step, nats for the whole population, [num_steps].
        convergence: see `ConvergenceReport`.
        model: the NumPyro model.
        model_kwargs: what the model was called with, besides the data.
        data: what it was fitted to.
    """

    params: dict[str, Any]
    guide: Guide | None
    losses: np.ndarray
    convergence: ConvergenceReport
    model: Callable[..., Any]
    model_kwargs: dict[str, Any]
    data: MixtureData

    def __repr__(self) -> str:
        """One line: arrays say little and fill pages."""
        guide = guide_name(self.guide) if self.guide is not None else "no guide"
        name = getattr(self.model, "__name__", repr(self.model))
        return f"<SVIFit of {name}, {guide}, {len(self.losses)} steps: {self.convergence.reason}>"


ROUNDS = (300, 300, 600, 1200, 2400, 4800)
"""Steps of the rounds of a fit that goes on until it has settled; two at least."""


def default_optimizer(
    num_steps: int | None = None, learning_rate: float = 0.01
) -> optax.GradientTransformation:
    """Adam under a cosine decay to 1 % of `learning_rate`, gradients clipped to global norm 1,000.

    The decay averages the noise of the ELBO away at the end; the clip is for the rare minibatch.
    Without `num_steps` every one of the `ROUNDS` has a decay of its own.
    """
    lengths = ROUNDS if num_steps is None else (num_steps,)
    decays = [optax.cosine_decay_schedule(learning_rate, n, alpha=0.01) for n in lengths]
    schedule = optax.join_schedules(decays, np.cumsum(lengths)[:-1].tolist())
    return optax.chain(optax.clip_by_global_norm(1e3), optax.adam(schedule))


def fit_svi(
    rng_key: jax.Array,
    data: MixtureData,
    *,
    model: Callable[..., Any] = mixture_of_personas,
    model_kwargs: Mapping[str, Any] | None = None,
    guide: str | type[AutoGuide] | AutoGuide | Callable[..., Any] = DEFAULT_GUIDE,
    optimizer: Any = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    num_particles: int = 4,
    tolerance: float = 0.02,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    maximum_likelihood: bool = False,
    initial_values: Mapping[str, Any] | None = None,
) -> SVIFit:
    """Fits a guide to the posterior of `model` by maximising the ELBO.

    Args:
        rng_key: decides the start and every draw.
        data: the population.
        model: a NumPyro model of `data` that returns its `PersonaMixture`.
        model_kwargs: further arguments of the model.
        guide: "AutoWhitenedNormal" (a full-covariance Gaussian, see
            `mop_jax.inference.guides`), the name of a NumPyro guide ("AutoNormal" is the mean-field
            posterior, "AutoDelta" the mode), its class, a guide as it is, or a function of the
            data with the model's sites and parameters of its own.
        optimizer: optax or NumPyro optimizer; `default_optimizer(num_steps)` by default.
        num_steps: gradient steps; by default `ROUNDS` of 300, 300, 600, 1,200, 2,400 and 4,800,
            each from the full learning rate, until one of them has changed nothing.
        batch_size: records per step, given to the model as `subsample_size`; all by default.
        num_particles: draws of the guide per step.
        tolerance: of the convergence report, nats per answer: a record is one, or as many as it
            counts. Less where answers are many, see `convergence_report`.
        progress: whether to show a progress bar.
        checkpoint: a folder from which a fit that was killed goes on, to the same last bit. Every
            few seconds the optimiser's state is saved there; a finished fit that took longer than
            that leaves its last state, and comes back at once. Only the very same fit (key, data,
            model, guide, optimiser, steps) finds it. The folder may be removed at any time.
        maximum_likelihood: leave the prior out of what is maximised ("AutoDelta" only); starts are
            drawn from it all the same.
        initial_values: where the fit starts, by site; the other sites start at a draw from the
            prior.

    Raises:
        FaultError: if the loss stops being a finite number; names the step.
        DataError: if `batch_size`, `num_steps`, the guide's name or `initial_values` is unusable,
            or the mode is asked for of a model that learns the scale of a prior.

    Example:
        >>> import jax
        >>> import numpy as np
        >>> from mop_jax.inference import fit_svi, posterior_draws
        >>> from mop_jax.models import full_table_data
        >>> rng = np.random.default_rng(0)
        >>> data = full_table_data(
        ...     log_likelihood=rng.normal(-20, 1, (6, 2, 3)),
        ...     context_embeddings=rng.normal(size=(6, 5)),
        ...     persona_embeddings=rng.normal(size=(2, 5)),
        ...     exemplar_embeddings=rng.normal(size=(3, 5)),
        ... )
        >>> fit = fit_svi(jax.random.key(0), data, num_steps=20, progress=False)
        >>> posterior_draws(fit, jax.random.key(1), 4).samples["log_temperature"].shape
        (4, 2)
    """
    if num_steps is not None and num_steps < 1:
        raise DataError(f"num_steps is {num_steps}; at least 1 is needed.")
    checks.random_key(rng_key)
    kwargs = dict(model_kwargs or {})
    run_kwargs = dict(kwargs)
    if batch_size is not None and batch_size < data.num_records:
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; at least 1 is needed.")
        run_kwargs["subsample_size"] = batch_size
    sites = latent_sites(model, data, run_kwargs)
    if not sites:
        return _nothing_to_fit(model, kwargs, data)
    maximised = without_prior(model) if maximum_likelihood else model
    start = _start(initial_values or {}, sites, guide)
    setup_key, run_key = jax.random.split(rng_key)
    made = make_guide(guide, maximised, **start)
    if maximum_likelihood and not isinstance(made, AutoDelta):
        raise DataError("maximum_likelihood is a point estimate; its guide is AutoDelta.")
    by_mode = isinstance(made, AutoDelta | AutoLaplaceApproximation)
    if by_mode and (scales := learnt_scales(model, data, run_kwargs)):
        raise DataError(
            f"The scale {scales[0]} of a prior is learnt, and its mode is no estimate of it: it "
            f"runs away; {guide_name(made)} needs scales that are given. Take another guide, such "
            f"as {DEFAULT_GUIDE}, or a model without it (gate: linear; temperature: true)."
        )
    auto_guide = prepare_guide(made, setup_key, data, run_kwargs)
    loss = make_loss(auto_guide, num_particles)
    svi = SVI(maximised, auto_guide, optimizer or default_optimizer(num_steps), loss, **run_kwargs)
    # Compiled whole: op by op it takes seconds.
    state = compiled_quickly(jax.jit(svi.init), run_key, data)(run_key, data)
    rounds = ROUNDS if num_steps is None else (num_steps,)
    steps = _Steps(svi, state, data, rounds, checkpoint, tolerance)
    end = 0
    with nullcontext() if progress else progress_bars.enabled(False):
        for number, length in enumerate(rounds):
            end += length
            title = "Fitting the gate" if number == 0 else "Fitting the gate further"
            with progress_bars.task(title, total=length) as advance:
                advance(min(length, max(0, length - (end - len(steps.losses)))))
                while len(steps.losses) < end:
                    advance(steps.run(end))
            report = convergence_report(
                steps.losses[:end],
                float(np.sum(data.weights)),
                tolerance * answers_per_record(data),
                rounds=rounds[: number + 1],
                latent_dim=sum(math.prod(shape) for shape in sites.values()),
            )
            # A decayed learning rate stands still anywhere: the first round proves nothing.
            if report.converged and number > 0:
                break
    steps.close()
    # A lifted module's own weights are placeholders once they have a prior: nothing to keep.
    params = {
        name: value
        for name, value in jax.jit(svi.get_params)(steps.state).items()
        if jax.tree.leaves(value)
    }
    return SVIFit(params, auto_guide, steps.losses, report, model, kwargs, data)


def answers_per_record(data: MixtureData) -> float:
    """How many answers a record holds on average: one, but for counts of closed answers."""
    if data.choices is None:
        return 1.0
    weighted = np.asarray(data.weights) * np.asarray(data.choices.counts).sum(1)
    return max(1.0, float(weighted.sum() / np.sum(data.weights)))


def without_prior(model: Callable[..., Any]) -> Callable[..., Any]:
    """A model whose latent sites have a flat prior: it says where a fit starts, no more."""

    @wraps(model)
    def flat(*args: Any, **kwargs: Any) -> Any:
        with _FlatPrior():
            return model(*args, **kwargs)

    return flat


class _FlatPrior(Messenger):
    """Masks the density of every latent site."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "sample" and not msg["is_observed"]:
            msg["fn"] = msg["fn"].mask(False)


def _start(values: Mapping[str, Any], sites: Mapping[str, Any], guide: Any) -> dict[str, Any]:
    """What makes a guide start at given values."""
    unknown = [name for name in values if name not in sites]
    if unknown:
        raise DataError(
            f"initial_values names the site {unknown[0]!r}; the model has {', '.join(sites)}."
        )
    if values and not isinstance(guide, str | type):
        raise DataError("A guide that is made already starts where it was told: no initial_values.")
    return {"init_loc_fn": start_at(values)} if values else {}


def latent_sites(
    model: Callable[..., Any], data: MixtureData, model_kwargs: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's unobserved sample sites; nothing is computed."""
    return {
        name: np.shape(site["value"])
        for name, site in _abstract_sites(model, data, model_kwargs).items()
    }


def learnt_scales(
    model: Callable[..., Any], data: MixtureData, model_kwargs: Mapping[str, Any]
) -> list[str]:
    """The sites of a model that say of themselves that they are scales of other sites' priors."""
    sites = _abstract_sites(model, data, model_kwargs)
    return [name for name, site in sites.items() if LEARNT_SCALE in site["infer"]]


def _abstract_sites(
    model: Callable[..., Any], data: MixtureData, model_kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The unobserved sample sites of a model's trace, with shapes for values."""
    sites: dict[str, Any] = {}

    def note_sites() -> None:
        # Not plain draws: an improper prior has none.
        drawn = numpyro.handlers.substitute(
            numpyro.handlers.seed(model, 0), substitute_fn=init_to_sample
        )
        trace = numpyro.handlers.trace(drawn).get_trace(data, **model_kwargs)
        for name, site in trace.items():
            if site["type"] == "sample" and not site["is_observed"]:
                sites[name] = site

    jax.eval_shape(note_sites)
    return sites


def _nothing_to_fit(
    model: Callable[..., Any], model_kwargs: dict[str, Any], data: MixtureData
) -> SVIFit:
    """The fit of a model without latent sites: no steps, and nothing that could still change."""
    log_density, _ = numpyro.infer.util.log_density(model, (data,), model_kwargs, {})
    loss = -float(log_density) / float(np.sum(data.weights))
    reason = "Converged: the model has no latent sites, so there is nothing to fit."
    report = ConvergenceReport(True, reason, 0.0, 0.0, 0.0, loss)
    return SVIFit({}, None, np.zeros(0, np.float32), report, model, model_kwargs, data)


class _Steps:
    """Steps of an optimiser, a chunk at a time, from a checkpoint where there is one.

    Attributes:
        state: after the steps so far.
        losses: of the steps so far.
    """

    def __init__(
        self,
        svi: SVI,
        state: Any,
        data: MixtureData,
        rounds: tuple[int, ...],
        checkpoint: str | Path | None,
        tolerance: float,
    ) -> None:
        """`state` is the first one; `rounds` and `tolerance` decide when the fit is finished."""
        self.losses = np.zeros(0, data.log_likelihood.dtype)
        # NumPy on the way: a weakly typed first state would differ in type from the next.
        self.state = jax.tree.map(_strongly_typed, state)
        self._data = data
        self._chunk = chunk = max(1, min(100, -(-rounds[0] // 20)))
        self._compiled: Any = None

        @jax.jit
        def run(state: Any, data: MixtureData, num: jax.Array) -> tuple[Any, jax.Array]:
            def step(i: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
                state, losses = carry
                state, loss_value = svi.update(state, data)
                # Of a table in single precision where JAX computes in double.
                return state, losses.at[i].set(loss_value.astype(losses.dtype))

            # A loop of variable length: one compilation serves the last, shorter chunk too.
            losses = jnp.zeros(chunk, data.log_likelihood.dtype)
            return jax.lax.fori_loop(0, num, step, (state, losses))

        self._lowered = run.lower(self.state, data, np.int32(chunk))
        self._checkpoints = None
        if checkpoint is not None:
            key = fingerprint(self._lowered, self.state, data, (*rounds, tolerance))
            self._checkpoints = FitCheckpoints(checkpoint, key)
            found = self._checkpoints.restore(self.state)
            self.state, self.losses = found or (self.state, self.losses)

    def run(self, until: int) -> int:
        """Does the next chunk, to step `until` at most; returns how many steps that were.

        Raises:
            FaultError: if a loss is not finite; names the step.
        """
        # Not before: a fit that is found finished needs no program.
        self._compiled = self._compiled or self._lowered.compile()
        num = min(self._chunk, until - len(self.losses))
        self.state, losses = self._compiled(self.state, self._data, np.int32(num))
        self.losses = np.append(self.losses, np.asarray(losses)[:num])
        bad = np.flatnonzero(~np.isfinite(self.losses[-num:]))
        if bad.size:
            step = len(self.losses) - num + int(bad[0])
            raise FaultError(
                f"The loss is {self.losses[step]} at step {step + 1}; a smaller learning rate or a "
                "tighter prior usually helps."
            )
        if self._checkpoints is not None:
            self._checkpoints.save(Progress(self.state, self.losses))
        return num

    def close(self) -> None:
        """Ends what writes checkpoints."""
        if self._checkpoints is not None:
            self._checkpoints.close()


def _strongly_typed(leaf: Any) -> Any:
    is_key = jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)
    return leaf if is_key else jnp.asarray(np.asarray(leaf))
