"""Checks that a conversion makes before it says done."""
