"""The version of this package, for cards and reports."""

__version__ = "0.1.0"
