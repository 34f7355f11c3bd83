"""The command `mop`."""

from mop_jax.cli.app import app, main

__all__ = ["app", "main"]
