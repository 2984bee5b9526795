"""The package as a whole: requirements, entry point, and the rules that its source keeps everywhere."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "megatron_srpo"
ISSUE_EXTRAS = {"cpu", "gpu", "sglang", "launch", "self-play", "dev"}

LARGEST_FILE_BYTES = 25_000
LONGEST_FUNCTION_LINES = 100
# Each one stands at a boundary to code that may raise anything and says so; the aim is one in 3000 lines.
BROAD_EXCEPTS = 11

# Which rooms a room may import: the table of the design, "may import" read transitively. `errors` is open to
# all. Rooms that the table does not name stand at its end.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "megatron_on_cpu": set(),
    "config": set(),
    "splitmix": set(),
    "sglang_on_cpu": {"splitmix"},
    "platform": {"megatron_on_cpu", "sglang_on_cpu"},
    "ops": {"platform"},
    "algorithms": {"config"},
    "model": {"platform", "config"},
    "weights": {"model", "platform"},
    "data": {"config"},
    "rewards": {"data"},
    "rollout": {"weights", "data", "splitmix"},
    # data: micro-batches are packed and balanced with the functions of data/packing.py.
    "training": {"model", "ops", "algorithms", "weights", "data"},
    "evaluation": {"rollout", "rewards"},
    # loop: launch/entry.py is what every rank of a launched job calls.
    "launch": {"config", "loop"},
    "report": {"config"},
    # planner, session: a run for another machine is judged as a run is before it starts.
    "doctor": {"config", "platform", "model", "ops", "planner", "session"},
    "planner": {"config", "model", "ops", "report"},
    "session": {"training", "evaluation", "report"},
    "loop": {"session"},
    "selfplay": {"loop"},
    "commands": {"selfplay", "launch", "doctor", "planner"},
    "cli": {"commands"},
}


def setup_literal(name: str) -> dict[str, list[str]] | list[str]:
    """Read a list or dict that is written out in setup.py, without running it."""
    for node in ast.parse((REPOSITORY / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py assigns no {name}")


@cache
def core() -> list[Requirement]:
    return [Requirement(line) for line in setup_literal("REQUIREMENTS")]


@cache
def extras() -> dict[str, list[Requirement]]:
    literal = setup_literal("EXTRAS")
    assert isinstance(literal, dict)
    return {name: [Requirement(line) for line in lines] for name, lines in literal.items()}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, Version]:
    """Read a constraints file: comments and ``name==version`` lines, nothing else."""
    found: dict[str, Version] = {}
    for line in path.read_text().splitlines():
        if line.startswith("#") or not line:
            continue
        name, equals, version = line.partition("==")
        assert equals, f"{path.name}: {line!r} is not a pin"
        assert canonical(name) not in found, f"{path.name}: {name} twice"
        found[canonical(name)] = Version(version)
    return found


@cache
def source_files() -> tuple[Path, ...]:
    return tuple(sorted(PACKAGE.rglob("*.py")))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    """Walk the whole package for nodes of some kinds."""
    for path in source_files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, kinds):
                yield path, node


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(REPOSITORY)}:{node.lineno}"  # type: ignore[attr-defined]


@cache
def repository_files() -> tuple[Path, ...]:
    """The files that are, or are about to be, in the repository; skips outside a git checkout."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("needs a git checkout")
    paths = [REPOSITORY / name for name in listing.stdout.split("\0") if name]
    return tuple(path for path in paths if path.is_file())


def text_lines() -> Iterator[tuple[str, str]]:
    """Every line of every text file of the repository, with its place."""
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary: weights, images
        for number, line in enumerate(text.splitlines(), 1):
            yield f"{path.relative_to(REPOSITORY)}:{number}", line


# -------------------- requirements


def test_the_extras_that_were_promised_exist() -> None:
    assert set(extras()) >= ISSUE_EXTRAS


def test_every_requirement_has_a_lower_bound() -> None:
    """A bound, or an exact pin: `pip` must not fall back to an ancient version that was never tried."""
    everything = [*core(), *(requirement for group in extras().values() for requirement in group)]
    unbounded = [
        str(requirement)
        for requirement in everything
        if not any(part.operator in (">=", "==", "~=") for part in requirement.specifier)
    ]
    assert unbounded == []


def test_megatron_core_is_never_asked_for_with_its_extras() -> None:
    """They pull unpinned packages of uncertain origin."""
    everything = [*core(), *(requirement for group in extras().values() for requirement in group)]
    assert [str(r) for r in everything if canonical(r.name) == "megatron-core" and r.extras] == []
    assert "apex" not in {canonical(requirement.name) for requirement in everything}


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize("extra", ["core", "cpu", "dev", "bench", "launch", "self-play", "sglang"])
def test_constraints_satisfy_the_requirements(python: str, extra: str) -> None:
    """Every requirement is pinned, and to a version inside its bounds."""
    path = REPOSITORY / "constraints" / f"cpu-py{python.replace('.', '')}.txt"
    pinned = pins(path)
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    for requirement in core() if extra == "core" else extras()[extra]:
        if requirement.marker is not None and not requirement.marker.evaluate(environment):
            continue
        version = pinned.get(canonical(requirement.name))
        assert version is not None, f"{path.name} does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"{path.name}: {requirement.name} {version}"


def test_constraints_differ_between_pythons_only_where_they_must() -> None:
    """One more row here would mean that the two supported Pythons are tested with different software."""
    old, new = (pins(REPOSITORY / "constraints" / f"cpu-py{tag}.txt") for tag in ("311", "312"))
    assert {name for name in old if new.get(name) != old[name]} == {"megatron-core"}


def test_installed_metadata_agrees_with_setup_py() -> None:
    """Fails when the editable installation is older than setup.py."""
    try:
        lines = importlib.metadata.requires("megatron-srpo") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package to be installed (make install), not only importable")
    installed = {str(Requirement(line)) for line in lines if "extra ==" not in line}
    assert installed == {str(requirement) for requirement in core()}


def test_the_command_is_installed() -> None:
    """The entry point exists and can be loaded."""
    points = importlib.metadata.entry_points(group="console_scripts", name="megatron-srpo")
    if not points:
        pytest.skip("needs the package to be installed (make install), not only importable")
    (point,) = {point.value for point in points}
    assert point == "megatron_srpo.cli:main"
    assert callable(next(iter(points)).load())


def test_version_is_read_from_the_package() -> None:
    import megatron_srpo

    assert Version(megatron_srpo.__version__) >= Version("0.1.0")
    assert "VERSION.group(1)" in (REPOSITORY / "setup.py").read_text()


def test_license_is_apache() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


# -------------------- importing


def run_python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter in the repository; return what it printed."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_is_light() -> None:
    """Neither torch nor Megatron-Core is imported: `--help` and config errors come at once."""
    code = (
        "import sys, megatron_srpo; print(sorted({'torch', 'megatron', 'transformers'} & set(sys.modules)))"
    )
    assert run_python(code).strip() == "[]"


#: Imported only where Triton was found and chosen (ops/backend.py), and by who uses nemo-run.
NEED_EXTRAS = ("megatron_srpo.ops.triton_", "megatron_srpo.launch.nemo_recipes")


def test_importing_every_module_makes_no_cuda_call() -> None:
    """With CUDA's initialisation turned into an error, all modules still import, but for Triton kernels."""
    code = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("ignore")
import torch
def refuse(*arguments, **options):
    raise AssertionError("a CUDA call while importing")
torch.cuda._lazy_init = refuse
import megatron_srpo
names = [module.name for module in pkgutil.walk_packages(megatron_srpo.__path__, "megatron_srpo.")]
for name in names:
    if not name.startswith(tuple(sys.argv[1:])):
        importlib.import_module(name)
assert not torch.cuda.is_initialized()
print(len(names))
"""
    # All but megatron_srpo/__init__.py itself.
    assert int(run_python(code, *NEED_EXTRAS)) == len(source_files()) - 1


# -------------------- rules of the source


def test_files_are_small() -> None:
    large = {str(path.relative_to(REPOSITORY)): path.stat().st_size for path in source_files()}
    assert {name: size for name, size in large.items() if size > LARGEST_FILE_BYTES} == {}


def test_functions_are_short() -> None:
    long = {
        place(path, node): node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]
        for path, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
    }
    assert {where: lines for where, lines in long.items() if lines > LONGEST_FUNCTION_LINES} == {}


def annotated(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Say whether every argument (but self and cls) and the result carry an annotation."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return function.returns is not None and all(a.annotation or a.arg in ("self", "cls") for a in named)


def test_every_function_is_annotated() -> None:
    bare = [
        f"{place(path, node)} {node.name}"
        for path, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not annotated(node)
    ]
    assert bare == []


def test_public_modules_classes_and_functions_are_documented() -> None:
    """Top-level ones whose name has no leading underscore."""
    bare = []
    for path in source_files():
        tree = tree_of(path)
        public = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
        ]
        bare += [f"{place(path, node)} {node.name}" for node in public if not ast.get_docstring(node)]
        if tree.body and not ast.get_docstring(tree):
            bare.append(str(path.relative_to(REPOSITORY)))
    assert bare == []


def reads_environment(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ("environ", "getenv", "environb", "putenv")
    return (
        isinstance(node, ast.ImportFrom) and node.module == "os" and "environ" in {n.name for n in node.names}
    )


def test_only_platform_reads_the_environment() -> None:
    readers = {
        place(path, node)
        for path, node in nodes(ast.Attribute, ast.ImportFrom)
        if reads_environment(node) and path != PACKAGE / "platform.py"
    }
    assert readers == set()


def is_broad(handler: ast.ExceptHandler) -> bool:
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(name is None or ast.unparse(name) in ("Exception", "BaseException") for name in names)


def test_broad_excepts_are_few_and_explained() -> None:
    """Each says in a comment, on its line or within its block, why anything may come through there."""
    broad = [
        (path, node)
        for path, node in nodes(ast.ExceptHandler)
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    ]
    assert len(broad) <= BROAD_EXCEPTS, [place(path, node) for path, node in broad]
    for path, node in broad:
        lines = path.read_text().splitlines()[node.lineno - 2 : node.end_lineno]
        assert any("#" in line for line in lines), f"{place(path, node)}: say why"


def test_no_pickle_and_no_remote_code() -> None:
    """Neither is ever needed, and both run whatever a file contains."""
    found = [
        place(path, node)
        for path, node in nodes(ast.keyword)
        if isinstance(node, ast.keyword)
        and node.arg == "trust_remote_code"
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    ]
    assert found == []


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Yield every room that a file imports, at its top or inside a function."""
    for node in ast.walk(tree_of(path)):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path, node)}: import by full name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            root, _, rest = name.partition(".")
            if root == "megatron_srpo" and rest and not rest.startswith("__"):
                yield node, rest.split(".")[0]


def allowed(room: str) -> set[str]:
    """Close the table: what a room may import, and what those rooms may import."""
    reach = {"errors", room}
    open_rooms = [room]
    while open_rooms:
        new = MAY_IMPORT.get(open_rooms.pop(), set()) - reach
        reach |= new
        open_rooms += new
    return reach


def test_every_room_has_its_place_in_the_table() -> None:
    assert {room_of(path) for path in source_files()} - {"__init__"} <= set(MAY_IMPORT)


def test_imports_point_downward() -> None:
    wrong = [
        f"{place(path, node)}: {room_of(path)} imports {room}"
        for path in source_files()
        if room_of(path) != "__init__"
        for node, room in imported_rooms(path)
        if room not in allowed(room_of(path))
    ]
    assert wrong == []


def test_the_table_of_rooms_has_no_cycle() -> None:
    assert [room for room in MAY_IMPORT if any(room in allowed(other) for other in MAY_IMPORT[room])] == []


# -------------------- rules of the repository

MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.])/(work|opt|root|home)/[a-z.]")
URL = re.compile(r"[a-z]+://(?:[^\s/@'\"]+@)?([A-Za-z0-9.-]+|\[[0-9a-f:]+\])")
PUBLIC_HOSTS = {
    "arxiv.org",
    "github.com",
    "raw.githubusercontent.com",
    "huggingface.co",
    "www.apache.org",
    "download.pytorch.org",
    "localhost",
    "127.0.0.1",
    "www.w3.org",
}
# Addresses and names that are reserved for documentation (RFC 5737, RFC 2606).
DOCUMENTATION = re.compile(r"192\.0\.2\.\d+|198\.51\.100\.\d+|[a-z.-]+\.(example\.com|invalid)")


def test_no_paths_of_one_machine() -> None:
    assert [where for where, line in text_lines() if MACHINE_PATH.search(line)] == []


def test_only_public_hosts_are_named() -> None:
    """No private package index, mirror or proxy may slip into a file."""
    named = [
        f"{where} {host}"
        for where, line in text_lines()
        for host in URL.findall(line)
        if host not in PUBLIC_HOSTS and "." in host and not DOCUMENTATION.fullmatch(host)
    ]
    assert named == []


def test_patterns_find_what_they_must() -> None:
    """The two searches above would be worthless if their patterns matched nothing."""
    for folder in ("root", "work", "opt", "home"):
        assert MACHINE_PATH.search(f"see /{folder}/x") and MACHINE_PATH.search(f"/{folder}/x")
        assert not MACHINE_PATH.search(f"docs/{folder}/x")
    assert URL.findall("https://user:pw@mirror.example.com/simple") == ["mirror.example.com"]


def test_the_repository_stays_small() -> None:
    """The carried model may weigh 8 MB; nothing else may come near that."""
    heavy = {str(p.relative_to(REPOSITORY)): p.stat().st_size for p in repository_files()}
    assert {name: size for name, size in heavy.items() if size > 8_000_000} == {}
