"""Skill-aware measurement: question, abstract code, vector. The code is never executed."""
