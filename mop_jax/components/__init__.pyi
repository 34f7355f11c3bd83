from .candidates import (
    CandidateSet,
    full_candidates,
    importance_candidates,
    renormalised_candidates,
    top_candidates,
)
from .components import Components, LeaveOut, Method
from .exemplars import cross_strata, leave_out_mask, select_exemplars
from .personas import (
    Persona,
    cluster_records,
    read_personas,
    record_texts,
    synthesise_personas,
    write_personas,
)
from .proposals import (
    FactorisedProposal,
    Proposal,
    TableProposal,
    defensive_proposal,
    gate_proposal,
)

__all__ = [
    "CandidateSet",
    "Components",
    "FactorisedProposal",
    "LeaveOut",
    "Method",
    "Persona",
    "Proposal",
    "TableProposal",
    "cluster_records",
    "cross_strata",
    "defensive_proposal",
    "full_candidates",
    "gate_proposal",
    "importance_candidates",
    "leave_out_mask",
    "read_personas",
    "record_texts",
    "renormalised_candidates",
    "select_exemplars",
    "synthesise_personas",
    "top_candidates",
    "write_personas",
]
