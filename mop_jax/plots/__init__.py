"""The figures of a run: arrays in, a matplotlib `Figure` out.

Nothing here reads a run folder or needs a language model, so that every figure can be redrawn in a
notebook from a posterior or a table of results. `save_figure` writes one as PNG. Titles state what
the numbers show; the line under them says how to read the marks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
