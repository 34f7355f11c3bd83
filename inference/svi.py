"""Stochastic variational inference for mixture-of-personas models.

`fit_svi` is NumPyro's `SVI.run` with what a long job needs: progress with an ETA, minibatches, a
named refusal at the first loss that is not a number, and a `ConvergenceReport` that says whether
the run was long enough. Same key, same data: same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoGuide

from mop_jax import progress as progress_bars
from mop_jax.errors import DataError, FaultError
from mop_jax.inference.guides import DEFAULT_GUIDE, make_guide, make_loss, prepare_guide
from mop_jax.models.data import MixtureData
from mop_jax.models.mixture import mixture_of_personas


class ConvergenceReport(NamedTuple):
    """Whether a run of SVI had settled, judged on its last two quarters.

    Attributes:
        converged: whether `improvement` + 2 `standard_error` lies below `tolerance`.
        reason: one sentence for a reader.
        improvement: fall of the mean loss from the third quarter to the last, nats per record.
        standard_error: of `improvement`, from the means of ten consecutive batches per quarter
            (neighbouring losses share their parameters, so they are not independent).
        tolerance: nats per record.
        final_loss: mean loss of the last quarter, nats per record.
    """

    converged: bool
    reason: str
    improvement: float
    standard_error: float
    tolerance: float
    final_loss: float


class SVIFit(NamedTuple):
    """A fitted guide.

    Attributes:
        params: the guide's parameters.
        guide: the guide, whose `sample_posterior(rng_key, params, …)` draws from it.
        losses: negative ELBO of every step, nats for the whole population, [num_steps].
        convergence: see `ConvergenceReport`.
        model: the NumPyro model.
        model_kwargs: what the model was called with, besides the data.
        data: what it was fitted to.
    """

    params: dict[str, Any]
    guide: AutoGuide
    losses: np.ndarray
    convergence: ConvergenceReport
    model: Callable[..., Any]
    model_kwargs: dict[str, Any]
    data: MixtureData


ROUNDS = (500, 1000, 2000, 4000)
"""Steps of the rounds of a fit that goes on until it has settled."""


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
    guide: str | type[AutoGuide] | AutoGuide = DEFAULT_GUIDE,
    optimizer: Any = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    num_particles: int = 4,
    tolerance: float = 0.02,
    progress: bool = True,
) -> SVIFit:
    """Fits a guide to the posterior of `model` by maximising the ELBO.

    Args:
        rng_key: decides the start and every draw.
        data: the population.
        model: a NumPyro model of `data` that returns its `PersonaMixture`.
        model_kwargs: further arguments of the model.
        guide: "AutoWhitenedNormal" (a full-covariance Gaussian, see
            `mop_jax.inference.guides`), the name of a NumPyro guide ("AutoNormal" is the mean-field
            posterior, "AutoDelta" the mode), its class, or a guide as it is.
        optimizer: optax or NumPyro optimizer; `default_optimizer(num_steps)` by default.
        num_steps: gradient steps; by default `ROUNDS` of 500, 1,000, 2,000 and 4,000 until the
            fit has converged.
        batch_size: records per step, given to the model as `subsample_size`; all by default.
        num_particles: draws of the guide per step.
        tolerance: of the convergence report, nats per record.
        progress: whether to show a progress bar.

    Raises:
        FaultError: if the loss stops being a finite number; names the step.
        DataError: if `batch_size`, `num_steps` or the guide's name is unusable.

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
    kwargs = dict(model_kwargs or {})
    run_kwargs = dict(kwargs)
    if batch_size is not None and batch_size < data.num_records:
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; at least 1 is needed.")
        run_kwargs["subsample_size"] = batch_size
    setup_key, run_key = jax.random.split(rng_key)
    auto_guide = prepare_guide(make_guide(guide, model), setup_key, data, run_kwargs)
    loss = make_loss(auto_guide, num_particles)
    svi = SVI(model, auto_guide, optimizer or default_optimizer(num_steps), loss, **run_kwargs)
    state = jax.jit(svi.init)(run_key, data)  # compiled whole: op by op it takes seconds

    @jax.jit
    def run_chunk(state: Any, data: MixtureData, num: jax.Array) -> tuple[Any, jax.Array]:
        def step(i: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            state, losses = carry
            state, loss_value = svi.update(state, data)
            return state, losses.at[i].set(loss_value)

        # A loop of variable length: one compilation serves the last, shorter chunk too.
        losses = jnp.zeros(chunk, data.log_likelihood.dtype)
        return jax.lax.fori_loop(0, num, step, (state, losses))

    rounds = ROUNDS if num_steps is None else (num_steps,)
    chunk = max(1, min(100, -(-rounds[0] // 20)))
    losses = np.zeros(0, data.log_likelihood.dtype)
    silence = nullcontext() if progress else progress_bars.enabled(False)
    with silence:
        for number, length in enumerate(rounds):
            title = "Fitting the gate" if number == 0 else "Fitting the gate further"
            with progress_bars.task(title, total=length) as advance:
                for done in range(0, length, chunk):
                    num = min(chunk, length - done)
                    state, chunk_losses = run_chunk(state, data, num)
                    losses = np.concatenate([losses, np.asarray(chunk_losses)[:num]])
                    _refuse_bad_loss(losses, num)
                    advance(num)
            report = convergence_report(losses[-length:], float(np.sum(data.weights)), tolerance)
            if report.converged:
                break
    # A lifted module's own weights are placeholders once they have a prior: nothing to keep.
    params = {
        name: value
        for name, value in jax.jit(svi.get_params)(state).items()
        if jax.tree.leaves(value)
    }
    return SVIFit(params, auto_guide, losses, report, model, kwargs, data)


def _refuse_bad_loss(losses: np.ndarray, num_new: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses[-num_new:]))
    if bad.size:
        step = len(losses) - num_new + bad[0]
        raise FaultError(
            f"The loss is {losses[step]} at step {step + 1}; a smaller learning rate or a tighter "
            "prior usually helps."
        )


def convergence_report(
    losses: np.ndarray, total_weight: float, tolerance: float = 0.02
) -> ConvergenceReport:
    """Judges a loss trace: has the last quarter of the run still improved on the third?

    The verdict is an equivalence test, so a noisy trace cannot pass by being noisy: converged means
    that we are sure (two standard errors) that the change is below `tolerance`, either way.

    Args:
        losses: negative ELBO per step, nats, [num_steps].
        total_weight: sum of the records' weights, by which the losses are divided.
        tolerance: nats per record.
    """
    per_record = np.asarray(losses, np.float64) / total_weight
    quarter = len(per_record) // 4
    num_batches = 10
    if quarter < 2 * num_batches:
        final = float(per_record[-max(quarter, 1) :].mean())
        reason = f"{len(losses)} steps are too few to judge; at least {8 * num_batches} are needed."
        return ConvergenceReport(False, reason, float("nan"), float("nan"), tolerance, final)
    width = quarter // num_batches
    tail = per_record[-2 * num_batches * width :].reshape(2, num_batches, width).mean(-1)
    improvement = float(tail[0].mean() - tail[1].mean())
    standard_error = float(np.sqrt(tail.var(axis=1, ddof=1).sum() / num_batches))
    change = f"{improvement:+.4f} ± {standard_error:.4f} nats per record in the last quarter"
    converged = abs(improvement) + 2 * standard_error < tolerance
    if converged:
        reason = f"Converged: the ELBO gained {change}, within {tolerance:g} of nothing."
    elif improvement < -2 * standard_error:
        reason = f"Getting worse: the ELBO gained {change}; use a smaller learning rate."
    elif improvement > 2 * standard_error:
        reason = f"Still improving: the ELBO gained {change}; more steps are needed."
    else:
        reason = f"Too noisy to tell: the ELBO gained {change}; use more steps or more particles."
    return ConvergenceReport(
        converged, reason, improvement, standard_error, tolerance, float(tail[1].mean())
    )
