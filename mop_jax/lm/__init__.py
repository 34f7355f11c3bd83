"""The frozen language model: loading, scoring and sampling, and what stands in its place."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
