from .files import read_table
from .keys import is_long, normal_form, response_key, text_key, twin_keys
from .population import Population
from .splits import SplitBy, apportion, split_rows
from .table import Table

__all__ = [
    "Population",
    "SplitBy",
    "Table",
    "apportion",
    "is_long",
    "normal_form",
    "read_table",
    "response_key",
    "split_rows",
    "text_key",
    "twin_keys",
]
