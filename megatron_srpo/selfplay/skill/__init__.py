"""Skill-aware measurement (SAM, arXiv 2602.13103): question -> abstract code -> vector. Code is never executed."""
