"""``megatron-srpo doctor``: what this machine and this model folder are missing, each with a remedy."""

from megatron_srpo.doctor.command import add_arguments, print_report, run, run_checks
from megatron_srpo.doctor.types import Check

__all__ = ["Check", "add_arguments", "print_report", "run", "run_checks"]
