"""One thread for the linear algebra of metrics.

Resampling fits hundreds of small models. A second thread gains nothing there, and waits for the
first one busily: a logistic regression of 1,600 texts took six times as long with two. Sums are
also the same whatever the machine's cores.
"""

from __future__ import annotations

from threadpoolctl import threadpool_limits


def one_thread() -> threadpool_limits:
    """A context in which BLAS and OpenMP keep to one thread."""
    return threadpool_limits(limits=1)
