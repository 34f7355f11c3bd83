"""A posterior as ArviZ's InferenceData, and that as a file."""
