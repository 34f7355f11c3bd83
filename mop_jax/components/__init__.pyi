from .candidates import (
    CandidateSet,
    full_candidates,
    importance_candidates,
    renormalised_candidates,
)
from .components import Components
from .exemplars import (
    LeaveOut,
    cross_strata,
    group_mask,
    leave_out_mask,
    refuse_twins,
    select_exemplars,
)
from .personas import (
    Persona,
    cluster_records,
    read_personas,
    record_texts,
    synthesise_personas,
    write_personas,
)
from .pool import ComponentPool, Method
from .proposals import (
    FactorisedProposal,
    Proposal,
    TableProposal,
    defensive_proposal,
    gate_proposal,
)
from .rounds import extended_candidates, half_sets, inclusion_probabilities
from .surrogate import Scores, Surrogate, fit_surrogate, scores_of

__all__ = [
    "CandidateSet",
    "ComponentPool",
    "Components",
    "FactorisedProposal",
    "LeaveOut",
    "Method",
    "Persona",
    "Proposal",
    "Scores",
    "Surrogate",
    "TableProposal",
    "cluster_records",
    "cross_strata",
    "defensive_proposal",
    "extended_candidates",
    "fit_surrogate",
    "full_candidates",
    "gate_proposal",
    "group_mask",
    "half_sets",
    "importance_candidates",
    "inclusion_probabilities",
    "leave_out_mask",
    "read_personas",
    "record_texts",
    "refuse_twins",
    "renormalised_candidates",
    "scores_of",
    "select_exemplars",
    "synthesise_personas",
    "write_personas",
]
