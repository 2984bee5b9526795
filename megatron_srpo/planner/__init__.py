"""Predict what a layout takes: parameters, memory, time and communication (``docs/plan.md``)."""
