"""Demonstrator."""
