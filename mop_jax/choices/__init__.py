"""Closed answers by a mixture of personas: how questions are put, scored, fitted and predicted."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
