"""Guides by name: families of approximate posteriors, and how they are started.

Every automatic guide of NumPyro goes by its own name. The default is `AutoWhitenedNormal`: the
full-covariance Gaussian, searched for in coordinates in which the posterior is already nearly
standard normal. A guide written as a function, as in any NumPyro program, becomes a
`FunctionGuide`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer import Trace_ELBO, TraceMeanField_ELBO, autoguide, init_to_sample
from numpyro.infer.autoguide import (
    AutoContinuous,
    AutoDelta,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoNormal,
)
from numpyro.infer.util import potential_energy

from mop_jax.errors import DataError, FaultError
from mop_jax.inference.whitened_guide import AutoWhitenedNormal, compiled_quickly
from mop_jax.models.data import MixtureData

__all__ = [
    "DEFAULT_GUIDE",
    "GUIDES",
    "AutoWhitenedNormal",
    "FunctionGuide",
    "Guide",
    "compiled_quickly",
    "guide_name",
    "make_guide",
    "make_loss",
    "prepare_guide",
    "sample_guide",
    "start_at",
]


class FunctionGuide:
    """A guide that is an ordinary function of the data, with sample sites and `numpyro.param`s.

    It is called as the model is, `guide(data, **model_kwargs)`, and must have every latent site of
    the model and no other, but for sites marked `infer={"is_auxiliary": True}`.
    """

    def __init__(self, model: Callable[..., Any], function: Callable[..., Any]) -> None:
        """`model` is the one whose posterior the function approximates."""
        self.model = model
        self.function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the guide."""
        return self.function(*args, **kwargs)

    def check(self, data: MixtureData, model_kwargs: Mapping[str, Any]) -> None:
        """Refuses a guide whose sites are not the model's.

        Raises:
            DataError: naming the first site.
        """
        ours = self._sites(self.model, data, model_kwargs)
        own = self._sites(self.function, data, model_kwargs)
        for name, shape in ours.items():
            if own.get(name) != shape:
                has = "none of that name" if name not in own else f"one of shape {own[name]}"
                raise DataError(
                    f"The model has a site {name!r} of shape {shape}, and the guide "
                    f"{self.__name__} has {has}; a guide needs every latent site of its model."
                )
        beyond = [name for name in own if name not in ours]
        if beyond:
            raise DataError(
                f"The guide {self.__name__} has a site {beyond[0]!r}, which the model does not; "
                f"the model has {', '.join(ours)}."
            )

    @staticmethod
    def _sites(
        function: Callable[..., Any], data: MixtureData, model_kwargs: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}

        def note() -> None:
            drawn = numpyro.handlers.substitute(
                numpyro.handlers.seed(function, 0), substitute_fn=init_to_sample
            )
            trace = numpyro.handlers.trace(drawn).get_trace(data, **model_kwargs)
            for name, site in trace.items():
                latent = site["type"] == "sample" and not site["is_observed"]
                if latent and not site["infer"].get("is_auxiliary"):
                    found[name] = np.shape(site["value"])

        jax.eval_shape(note)
        return found

    def sample_posterior(
        self,
        rng_key: jax.Array,
        params: Mapping[str, Any],
        *args: Any,
        sample_shape: tuple[int, ...] = (),
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Draws of every site; as `AutoGuide.sample_posterior`."""
        (number,) = sample_shape or (1,)

        def one(key: jax.Array) -> dict[str, Any]:
            guide = numpyro.handlers.substitute(self.function, data=dict(params))
            seeded = numpyro.handlers.seed(guide, key)
            trace = numpyro.handlers.trace(seeded).get_trace(*args, **kwargs)
            return {
                name: site["value"]
                for name, site in trace.items()
                if site["type"] == "sample" and not site["infer"].get("is_auxiliary")
            }

        drawn = jax.vmap(one)(jax.random.split(rng_key, number))
        return drawn if sample_shape else jax.tree.map(lambda values: values[0], drawn)


Guide: TypeAlias = AutoGuide | FunctionGuide


def guide_name(guide: Guide) -> str:
    """The name of a guide's class, or of the function that it is."""
    return guide.__name__ if isinstance(guide, FunctionGuide) else type(guide).__name__


def _needs_more(kind: type[AutoGuide]) -> bool:
    """Whether a guide cannot be made of a model alone."""
    parameters = inspect.signature(kind).parameters.values()
    named = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    needed = [p.name for p in named if p.default is p.empty]
    # A list of guides is empty until its parts are added.
    return inspect.isabstract(kind) or needed != ["model"] or kind is autoguide.AutoGuideList


def _by_name() -> dict[str, type[AutoGuide]]:
    """NumPyro's guides that need nothing but a model."""
    found: dict[str, type[AutoGuide]] = {}
    for name, kind in vars(autoguide).items():
        if not (inspect.isclass(kind) and issubclass(kind, AutoGuide)):
            continue
        # Batched guides need sites that are alike.
        if not _needs_more(kind) and "Batched" not in name:
            found[name] = kind
    return dict(sorted(found.items()))


DEFAULT_GUIDE = "AutoWhitenedNormal"
GUIDES: dict[str, type[AutoGuide]] = {DEFAULT_GUIDE: AutoWhitenedNormal, **_by_name()}
"""Guides that `guide=` accepts by name."""


def start_at(values: Mapping[str, Any]) -> Callable[..., Any]:
    """An `init_loc_fn`: given values for some sites, of any shape that fits; a draw for others."""
    # NumPyro looks at the function inside a partial application.
    return partial(_given_or_drawn, values=values)


def _given_or_drawn(site: dict[str, Any], values: Mapping[str, Any]) -> Any:
    if site["name"] not in values:
        return init_to_sample(site)
    shape = site["fn"].shape(site["kwargs"].get("sample_shape", ()))
    return jnp.broadcast_to(jnp.asarray(values[site["name"]], float), shape)


def make_guide(
    guide: str | type[AutoGuide] | AutoGuide | Callable[..., Any],
    model: Callable[..., Any],
    **kwargs: Any,
) -> Guide:
    """A guide by name (a key of `GUIDES`), by class, as it comes, or as a function.

    Guides by name or class start at a draw from the prior: all weights zero is a saddle point of a
    bilinear gate, and NumPyro's default start, uniform on (−2, 2), is far outside the prior.

    Raises:
        DataError: if there is no guide of that name, or the class needs more than a model.
    """
    if isinstance(guide, str):
        if guide not in GUIDES:
            reason = "is unknown"
            if guide in autoguide.__all__:
                reason = "needs more than its name: make it and pass it as it is"
            raise DataError(f"guide {guide!r} {reason}; by name: {', '.join(GUIDES)}.")
        guide = GUIDES[guide]
    if isinstance(guide, type):
        if _needs_more(guide):
            raise DataError(
                f"Guide {guide.__name__} needs more than a model; make it, and pass it as it is."
            )
        return guide(model, **{"init_loc_fn": init_to_sample, **kwargs})
    return guide if isinstance(guide, AutoGuide | FunctionGuide) else FunctionGuide(model, guide)


def make_loss(guide: Guide, num_particles: int) -> Trace_ELBO | TraceMeanField_ELBO:
    """The ELBO for a guide: analytic KL terms where guide and model share their sites.

    Other guides draw all sites as one vector, of which the mean-field estimator knows nothing.
    """
    mean_field = isinstance(guide, AutoNormal | AutoDelta)
    return (TraceMeanField_ELBO if mean_field else _OrderedELBO)(num_particles=num_particles)


class _OrderedELBO(Trace_ELBO):
    """`Trace_ELBO` whose sites are summed in the order of their names.

    NumPyro sums them in the order of a set of strings, which is another in every process: a fit
    that is resumed would differ from one that was not in its last bits.
    """

    def __init__(self, num_particles: int) -> None:
        super().__init__(num_particles=num_particles, sum_sites=False)

    def loss_with_mutable_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The loss, summed over sites."""
        found = super().loss_with_mutable_state(*args, **kwargs)
        by_name = [found["loss"][name] for name in sorted(found["loss"])]
        return {**found, "loss": sum(by_name, start=jnp.array(0.0))}


def prepare_guide(
    guide: Guide, rng_key: jax.Array, data: MixtureData, model_kwargs: Mapping[str, Any]
) -> Guide:
    """Lets a guide see the model's sites, at a start drawn with `rng_key`, and returns it.

    The guide would do so itself, by differentiating the whole model op by op to see that its start
    has a finite gradient: half a minute of tiny compilations on a slow CPU. With the likelihood
    masked out it takes a few seconds, and the first step of the fit checks the loss anyway.
    """
    if isinstance(guide, FunctionGuide):
        guide.check(data, model_kwargs)
        return guide
    if guide.prototype_trace is not None:  # one that has been fitted before
        return guide
    model = guide.model
    guide.model = numpyro.handlers.mask(model, mask=False)
    try:
        with numpyro.handlers.block(), numpyro.handlers.seed(rng_seed=rng_key):
            guide._setup_prototype(data, **model_kwargs)
    except ValueError as error:
        if "Batched" not in type(guide).__name__:
            raise
        raise DataError(f"{type(guide).__name__} does not suit the model: {error}") from error
    finally:
        guide.model = model
    if isinstance(guide, AutoContinuous):
        # Annealed guides climb this density; it must not stay masked.
        guide._potential_fn_gen = lambda *args, **kwargs: partial(
            potential_energy, model, args, kwargs
        )
        guide._potential_fn = guide._potential_fn_gen(data, **model_kwargs)
    if isinstance(guide, AutoWhitenedNormal):
        guide.whiten(data, model_kwargs)
    return guide


def sample_guide(
    guide: Guide,
    rng_key: jax.Array,
    params: dict[str, Any],
    data: MixtureData,
    model_kwargs: Mapping[str, Any],
    num_draws: int,
) -> dict[str, Any]:
    """`num_draws` independent draws of every site from a fitted guide.

    Raises:
        FaultError: if a Laplace approximation has no covariance, because the Hessian at its mode is
            singular or not positive; its draws would all be equal.
    """
    if isinstance(guide, AutoLaplaceApproximation):
        _refuse_singular(guide, params)

    # Compiled whole: op by op it takes a second.
    @jax.jit
    def draw(rng_key: jax.Array, params: dict[str, Any], data: MixtureData) -> dict[str, Any]:
        return guide.sample_posterior(
            rng_key, params, data, sample_shape=(num_draws,), **dict(model_kwargs)
        )

    return draw(rng_key, params, data)


def _refuse_singular(guide: AutoLaplaceApproximation, params: dict[str, Any]) -> None:
    name = f"{guide.prefix}_loc"

    def loss(latent: jax.Array) -> jax.Array:
        return guide._loss_fn({**params, name: latent})

    precision = np.asarray(jax.jit(partial(guide._hessian_fn, loss))(params[name]), np.float64)
    eigenvalues = np.linalg.eigvalsh((precision + precision.T) / 2)
    # Single precision leaves about 1e-6 of the largest where there should be zero.
    flat = int((eigenvalues <= 1e-5 * eigenvalues.max()).sum())
    if flat or not np.isfinite(eigenvalues).all():
        raise FaultError(
            f"The Hessian at the mode has {flat} of {eigenvalues.size} directions without "
            "curvature, so AutoLaplaceApproximation has no covariance and would return equal "
            "draws. A bilinear gate has such directions always (it can be rotated): use the linear "
            "gate, or another guide; otherwise more steps may reach the mode."
        )
