"""A real Slurm of several virtual nodes on one Linux machine, for tests: no systemd, no Docker, no cgroups.

Every node is a network namespace (its own address), a UTS namespace (its own host name) and a PID namespace
(killing its first process is a power cut). The controller, the accounting daemon, its database and munge run
in one more set of namespaces, which is also the login node; nothing listens outside of them. All nodes share
the machine's file system, as a cluster's nodes share theirs.

    python -m tools.virtual_slurm up --nodes 4
    python -m tools.virtual_slurm run sbatch --wrap 'srun hostname'
    python -m tools.virtual_slurm power-off 2
    python -m tools.virtual_slurm down

Not shown by such a cluster: speed, limits on memory, real GPUs and containers, clocks that differ.
"""

from tools.virtual_slurm.cluster import Cluster
from tools.virtual_slurm.requirements import missing
from tools.virtual_slurm.settings import Settings, VirtualSlurmError

__all__ = ["Cluster", "Settings", "VirtualSlurmError", "missing"]
