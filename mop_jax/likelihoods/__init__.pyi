from .scoring import ScoredCandidates, response_ids, score_candidates, score_missing
from .store import LikelihoodStore, pair_key

__all__ = [
    "LikelihoodStore",
    "ScoredCandidates",
    "pair_key",
    "response_ids",
    "score_candidates",
    "score_missing",
]
