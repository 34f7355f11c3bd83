"""What every gate returns."""

from __future__ import annotations

from typing import NamedTuple

import jax


class GateLogits(NamedTuple):
    """The gate's logits, in the additive form that `PersonaMixture` takes.

    Attributes:
        persona: log π up to a constant, [N, K].
        exemplar_record: a_ij, the record's part of log Ω, [N, J]; −∞ at left-out exemplars.
        exemplar_persona: b_kj, the persona's part of log Ω, [K, J].
    """

    persona: jax.Array
    exemplar_record: jax.Array
    exemplar_persona: jax.Array
