"""Which places of the pools of personas and exemplars stand for none; see `bare_components`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy or jax array: travels through jit


class BareComponents(NamedTuple):
    """Which places of the pools stand for nothing.

    Attributes:
        no_exemplar: bool [J].
        no_persona: bool [K]; None where every persona is some.
    """

    no_exemplar: Array
    no_persona: Array | None = None

    def extended(self, leave_out: Array) -> Array:
        """A mask of exemplars that are some, [N, J − 1], with a column for the one that is none.

        A mask that has it already is returned as it is.
        """
        if np.shape(leave_out)[1] == np.shape(self.no_exemplar)[0]:
            return leave_out
        return np.pad(np.asarray(leave_out, bool), ((0, 0), (0, 1)))
