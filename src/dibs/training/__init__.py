"""Weighted examples to optimizer updates, and what a step measured."""
