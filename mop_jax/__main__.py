"""`mop`, and `python -m mop_jax`: at its post for Ctrl-C before anything that takes time."""

from __future__ import annotations

from mop_jax import interruption


def main() -> None:
    """Runs the command line in this process, which it ends."""
    interruption.watch()
    from mop_jax import cli

    cli.main()


if __name__ == "__main__":
    main()
