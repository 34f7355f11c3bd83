"""How many threads the linear algebra of metrics may take.

Resampling fits hundreds of small models. A second thread gains nothing there, and waits for the
first one busily: with two cores, all metrics of 14 and 14 texts took six times the processor time
that they take with one. Sums are also the same whatever the machine's cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

from mop_jax.evaluation.metrics.comparison import Comparison

# From here on products are large enough to be shared out.
_MANY_TEXTS = 2000


@contextmanager
def few_threads(comparison: Comparison) -> Iterator[None]:
    """Keeps to one thread unless there are many texts."""
    small = max(len(comparison.real), len(comparison.simulated)) < _MANY_TEXTS
    with threadpool_limits(limits=1 if small else None):
        yield
