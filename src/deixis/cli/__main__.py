"""``python -m deixis.cli``, for torchrun and where no script is installed."""

from deixis.cli import main

if __name__ == "__main__":
    main()
