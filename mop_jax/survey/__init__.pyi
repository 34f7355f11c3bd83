from mop_jax.survey.items import Items as Items
from mop_jax.survey.questions import Question as Question
