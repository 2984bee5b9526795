"""What ``tools/scaling_study.py`` is made of.

``sweep`` decides which runs there are and refuses impossible ones, ``tries`` remembers which have been
started, ``runs`` launches and watches them, ``measure`` reads their metrics, ``predict`` asks the planner,
``table`` and ``figures`` show both.
"""
