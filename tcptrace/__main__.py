"""``python -m tcptrace``."""

from tcptrace.cli.main import main

if __name__ == "__main__":
    main()
