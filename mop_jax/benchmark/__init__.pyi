from .responses import Responses, respond
from .tables import TABLES, make_table

__all__ = ["TABLES", "Responses", "make_table", "respond"]
