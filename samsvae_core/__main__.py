"""Where `samsvae` and `python -m samsvae_core` start."""

from samsvae_core.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
