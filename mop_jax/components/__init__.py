"""Components of the mixture, (persona, exemplar) pairs: made, chosen as candidates, scored."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
