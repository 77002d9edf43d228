"""Readers of prompt lists, one module for each family of formats."""
