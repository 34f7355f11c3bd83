"""Real data by name: what the paper's tables, and ours, are made on, in one schema."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
