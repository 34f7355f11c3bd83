from .codebook import Codebook, Coding, as_codebook, questions_from_table
from .codebook_files import codebook_of, load_codebook
from .exports import read_survey, survey_table
from .items import Items
from .questions import Question

__all__ = [
    "Codebook",
    "Coding",
    "Items",
    "Question",
    "as_codebook",
    "codebook_of",
    "load_codebook",
    "questions_from_table",
    "read_survey",
    "survey_table",
]
