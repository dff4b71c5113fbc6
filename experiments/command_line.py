"""The parser of runners whose command lines name files, not configs."""

import argparse


class Parser(argparse.ArgumentParser):
    """Reports a bad command line like any other bad input."""

    def error(self, message: str):
        """Raises ValueError instead of leaving the process."""
        raise ValueError(message)
