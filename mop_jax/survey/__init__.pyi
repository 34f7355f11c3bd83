from .answer_tables import answers_from_long, answers_from_wide
from .answers import Answers
from .cell_tables import items_from_cells
from .codebook import Codebook, Coding, as_codebook, questions_from_table
from .codebook_files import codebook_of, load_codebook
from .design_effects import design_effect
from .export import to_cells_table, to_tidy_table, write_cells_table, write_tidy_table
from .frames import Frame, frame_of, load_frame
from .histories import merge_histories, merge_shares
from .items import Earlier, Items
from .platforms import read_survey, survey_table
from .questions import Question
from .raking import load_margins, rake
from .samples import anes_1996, ces_2024

__all__ = [
    "Answers",
    "Codebook",
    "Coding",
    "Earlier",
    "Frame",
    "Items",
    "Question",
    "anes_1996",
    "answers_from_long",
    "answers_from_wide",
    "as_codebook",
    "ces_2024",
    "codebook_of",
    "design_effect",
    "frame_of",
    "items_from_cells",
    "load_codebook",
    "load_frame",
    "load_margins",
    "merge_histories",
    "merge_shares",
    "questions_from_table",
    "rake",
    "read_survey",
    "survey_table",
    "to_cells_table",
    "to_tidy_table",
    "write_cells_table",
    "write_tidy_table",
]
