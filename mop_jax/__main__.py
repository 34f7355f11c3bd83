"""`python -m mop_jax` is `mop`."""

from mop_jax.cli import main

main()
