"""Mixture of Personas as a probabilistic program in JAX.

A population is simulated by a contextual mixture: each component is a language model prompted with
a persona and an exemplar, and a gate, fitted by SVI over the language model's log-likelihoods, says
how often each component speaks in each context. `run` does the whole job; the parts compose by
hand.

Names are imported when they are first used (`__init__.pyi` lists them), so that the command line
answers a misspelt file at once, without JAX.
"""

import os

import lazy_loader

# transformers announces at import that it has found no PyTorch, which is as intended here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
