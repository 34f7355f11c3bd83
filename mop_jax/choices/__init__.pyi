from .exemplars import choose_components, draw_exemplars
from .options import OptionTable, score_options
from .wording import Wording, option_orders

__all__ = [
    "OptionTable",
    "Wording",
    "choose_components",
    "draw_exemplars",
    "option_orders",
    "score_options",
]
