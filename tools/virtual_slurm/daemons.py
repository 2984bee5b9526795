"""Start the daemons, each in the controller's or a node's namespaces, and wait until they answer."""

from pathlib import Path

from tools.virtual_slurm.files import DATABASE_PORT
from tools.virtual_slurm.network import namespace
from tools.virtual_slurm.settings import Settings
from tools.virtual_slurm.system import call, start, succeeds, wait_until

# The first process of a node: the kernel ends all others with it. It reaps what its children leave behind.
NODE = 'hostname "$1" && slurmd -N "$1" -f "$2" && while sleep 5; do :; done'
SMALL_DATABASE = (
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=16M",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-lock-wait-timeout=900",  # slurmdbd asks for it
    "--performance-schema=OFF",
)


def on_controller(settings: Settings, *command: str | Path) -> list[str]:
    """Return the command line that runs ``command`` on the controller, which is also the login node."""
    enter = ["ip", "netns", "exec", namespace(settings.name), "unshare", "--uts", "--", "sh", "-c"]
    return [
        *enter,
        'hostname ctl && exec "$@"',
        "sh",
        "env",
        f"SLURM_CONF={settings.slurm_conf}",
        *map(str, command),
    ]


def start_munge(settings: Settings) -> None:
    """Start munged, with a key and a socket of this cluster's own."""
    munge, socket = settings.folder / "munge", settings.munge_socket
    options = [
        f"--key-file={munge}/key",
        f"--socket={socket}",
        f"--pid-file={munge}/pid",
        f"--seed-file={munge}/seed",
    ]
    # --force: the folder may lie below one that others can write to, such as /tmp.
    _start(settings, "munged", "--foreground", "--force", *options)
    wait_until(lambda: succeeds(["munge", "-n", "-S", socket]), "munged", 20)


def start_accounting(settings: Settings) -> None:
    """Start the database and slurmdbd, and enter the account ``test`` for root."""
    data, socket = settings.folder / "database", settings.folder / "run/database.socket"
    where = ["--no-defaults", "--user=root", f"--datadir={data}", f"--tmpdir={data}"]
    call("mariadb-install-db", *where, "--auth-root-authentication-method=normal", "--skip-test-db")
    listen = [f"--socket={socket}", "--bind-address=127.0.0.1", f"--port={DATABASE_PORT}"]
    _start(settings, "mariadbd", *where, *listen, *SMALL_DATABASE)
    wait_until(socket.exists, "the database", 60)
    _start(settings, "slurmdbd", "-D")
    sacctmgr = on_controller(settings, "sacctmgr", "--immediate", "--quiet")
    wait_until(lambda: succeeds([*sacctmgr, "list", "cluster"]), "slurmdbd", 60)
    call(*sacctmgr, "add", "cluster", settings.name)
    call(*sacctmgr, "add", "account", "test", "Description=test", "Organization=test")
    call(*sacctmgr, "add", "user", "root", "Account=test")


def start_controller(settings: Settings) -> None:
    """Start slurmctld."""
    _start(settings, "slurmctld", "-D")
    ping = on_controller(settings, "scontrol", "ping")
    wait_until(lambda: succeeds(ping), "slurmctld", 60)


def start_node(settings: Settings, node: int) -> None:
    """Switch a node on; it is ready when Slurm says so."""
    settings.check_node(node)
    name = f"node{node}"
    enter = ["ip", "netns", "exec", namespace(settings.name, node), "unshare", "--uts", "--pid", "--fork"]
    first = ["--kill-child", "--mount-proc", "bash", "-c", NODE, "bash", name, str(settings.slurm_conf)]
    (settings.folder / f"spool.{name}").mkdir(exist_ok=True)
    start([*enter, *first], settings.folder / f"log/{name}.out")


def _start(settings: Settings, *command: str | Path) -> None:
    start(on_controller(settings, *command), settings.folder / f"log/{command[0]}.out")
