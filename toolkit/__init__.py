"""Upgrade or migrate the vision model you run in production, and prove that the new one may replace it."""

__version__ = "0.1.0"
