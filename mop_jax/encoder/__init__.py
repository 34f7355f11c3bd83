"""The frozen sentence encoder h(·) in Flax NNX: BERT and MPNet, with their checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
