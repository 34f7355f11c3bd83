"""The steps of a run of closed answers."""
