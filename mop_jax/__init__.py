"""Mixture of Personas as a probabilistic program in JAX."""
