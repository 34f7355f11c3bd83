from .components import ChoiceComponents
from .design import ChoiceDesign, Grouping, new_items
from .exemplars import choose_components, draw_exemplars, without_shown
from .options import OptionTable, score_options, score_prompts
from .prediction import ShareDraws, persona_draws, poststratify, share_draws
from .wording import Wording, option_orders

__all__ = [
    "ChoiceComponents",
    "ChoiceDesign",
    "Grouping",
    "OptionTable",
    "ShareDraws",
    "Wording",
    "choose_components",
    "draw_exemplars",
    "new_items",
    "option_orders",
    "persona_draws",
    "poststratify",
    "score_options",
    "score_prompts",
    "share_draws",
    "without_shown",
]
