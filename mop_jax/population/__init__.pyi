from .files import read_table
from .population import Population, response_key, text_key
from .splits import SplitBy, apportion, split_rows

__all__ = [
    "Population",
    "SplitBy",
    "apportion",
    "read_table",
    "response_key",
    "split_rows",
    "text_key",
]
