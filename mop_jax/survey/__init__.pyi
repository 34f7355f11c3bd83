from .asking import OptionTable, score_options
from .items import Items
from .questions import Question
from .wording import Wording, option_orders

__all__ = ["Items", "OptionTable", "Question", "Wording", "option_orders", "score_options"]
