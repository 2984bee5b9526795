"""What ``tools/check_pins.py`` is made of.

``files`` reads the pins and what is declared beside them, ``index`` asks the package index, ``check``
compares.
"""
