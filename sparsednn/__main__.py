"""``python -m sparsednn``."""

from sparsednn.cli.main import main

if __name__ == "__main__":
    main()
