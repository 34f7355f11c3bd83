"""NumPyro models and gates: arrays in, posterior out; no language model in sight."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
