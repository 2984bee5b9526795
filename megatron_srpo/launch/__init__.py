"""Recipes, and starting runs on this machine and on others."""
