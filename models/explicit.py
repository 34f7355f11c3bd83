"""The same model with its discrete choices left in: persona, then exemplar, then response.

The collapsed `mixture_of_personas` is what one fits. This program says the same thing one choice at
a time. NumPyro sums it out by enumeration, which is the oracle for the collapsed form, and
`numpyro.contrib.funsor.infer_discrete` draws which persona and exemplar spoke for each record (both
need the `funsor` package).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from mop_jax.distributions import PersonaMixture
from mop_jax.errors import DataError
from mop_jax.models.data import MixtureData
from mop_jax.models.mixture import mixture_of_personas


def explicit_mixture_of_personas(
    data: MixtureData,
    *,
    model: Callable[..., PersonaMixture] = mixture_of_personas,
    **model_kwargs: Any,
) -> None:
    """z_i ~ Categorical(π(x_i)), e_i | z_i ~ Categorical(Ω_z(x_i)), y_i ~ LM (paper, section 3).

    Sites `chosen_persona` and `chosen_exemplar` are the discrete choices, marked for parallel
    enumeration, and `response` is the language model's factor; all others are those of the
    model. Enumeration builds [N, K, J] arrays, so this is for small pools. Weights of records have
    no meaning for single choices and are not used.

    Args:
        data: a population with a full table (`full_table_data`).
        model: the collapsed program, whose plate of records is called `record` and whose
            observation `response`, as those of `mixture_of_personas` are.
        **model_kwargs: arguments of the model, `subsample_size` and `distribution` aside.

    Raises:
        DataError: if the table is not full.
    """
    shape = (data.num_records, data.num_personas, data.num_exemplars)
    if data.persona_index.shape[1] != shape[1] * shape[2]:
        raise DataError(
            f"The explicit program needs a full table of {shape[1]} × {shape[2]} candidates per "
            f"record; this one lists {data.persona_index.shape[1]}."
        )
    # The collapsed program declares the continuous sites; its summed response stays out of sight.
    with numpyro.handlers.block(hide=["record", "response"]):
        mixture = model(data, **model_kwargs)
    table = mixture.tempered_log_likelihood(data.log_likelihood).reshape(shape)
    # Categorical refuses −∞; this is as good as impossible in either precision.
    record_logits = jnp.maximum(mixture.exemplar_record_logits, -1e9)
    persona_part = jnp.asarray(mixture.exemplar_persona_logits)
    with numpyro.plate("record", shape[0]) as record:
        persona = numpyro.sample(
            "chosen_persona",
            dist.Categorical(logits=mixture.persona_logits),
            infer={"enumerate": "parallel"},
        )
        exemplar = numpyro.sample(
            "chosen_exemplar",
            dist.Categorical(logits=record_logits + persona_part[persona]),
            infer={"enumerate": "parallel"},
        )
        numpyro.factor("response", table[record, persona, exemplar])
