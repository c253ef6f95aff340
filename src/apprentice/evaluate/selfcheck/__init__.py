"""Selfcheck."""
