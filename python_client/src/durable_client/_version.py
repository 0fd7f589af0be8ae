"""The version of the client. A schema fits when the first two numbers are the same."""

__version__ = "0.1.0"
