"""Skill-aware measurement (arXiv 2602.13103): question, abstract code, vector. Code is never executed."""
