from .items import Items
from .questions import Question

__all__ = ["Items", "Question"]
