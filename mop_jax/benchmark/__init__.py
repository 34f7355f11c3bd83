"""The paper's tables as commands: every method's simulated population beside the real one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
