"""``megatron-srpo doctor``: what this machine and this model folder are missing, each with a remedy.

``checks.run_checks`` looks, ``report.print_report`` shows, ``command`` is the command line.
"""
