"""The check of pins: every kind of conflict is found, by real pip in an index made of local wheels."""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.conftest import REPOSITORY
from tools.check_pins import main
from tools.pins.check import Finding, check
from tools.pins.files import NoIndexError, PinsError, PinSet, base_image, parse_pin, read_sets
from tools.pins.index import Answers, Metadata, ask

BASE = "FROM nvidia/cuda:13.0.3-cudnn-devel-ubuntu24.04@sha256:" + "0" * 64
HEAD = 'files = ["set.txt"]\npython = "3.12.3"\nglibc = "2.39"\nextras = []\n'


class Project:
    """A folder with setup.py, pins and a package index of wheels without content."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.constraints, self.wheels = root / "constraints", root / "wheels"
        self.constraints.mkdir()
        self.wheels.mkdir()
        self.declare()
        (root / "Dockerfile").write_text(BASE + " AS image\n")

    def declare(self, required: Iterable[str] = (), more: str = "", head: str = HEAD) -> None:
        """Write setup.py and pins.toml."""
        (self.root / "setup.py").write_text(f"REQUIREMENTS = {list(required)!r}\nEXTRAS = {{}}\n")
        (self.constraints / "pins.toml").write_text(f"[set]\n{head}{more}")

    def pin(self, *lines: str) -> None:
        """Write the file of pins."""
        (self.constraints / "set.txt").write_text("# comment\n" + "\n".join(lines) + "\n")

    def publish(
        self,
        pin: str,
        *requires: str,
        tag: str = "py3-none-any",
        python: str = "",
        extras: Iterable[str] = (),
    ) -> None:
        """Put a wheel into the index."""
        name, _, version = pin.partition("==")
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Python: {python}"] if python else []
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        lines += [f"Requires-Dist: {line}" for line in requires]
        info = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(self.wheels / f"{name}-{version}-{tag}.whl", "w") as wheel:
            wheel.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
            wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            wheel.writestr(f"{info}/RECORD", "")

    def run(self, *arguments: str) -> int:
        """Run the command line on this project; return the exit status."""
        index = ["--pip=--no-index", f"--pip=--find-links={self.wheels}"]
        return main(["--constraints", str(self.constraints), *index, *arguments])

    def set(self) -> PinSet:
        """Read the one set."""
        return read_sets(self.constraints)[0]

    def findings(self, declared: dict[str, list[str]]) -> list[Finding]:
        """Check the set against metadata that is given by hand."""
        metadata = {
            name: Metadata(SpecifierSet(""), tuple(map(Requirement, lines)))
            for name, lines in declared.items()
        }
        return list(check(self.set(), Answers(metadata, {})).findings)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


# -------------------- by real pip


def test_pins_that_fit(project: Project, capsys: pytest.CaptureFixture) -> None:
    """Markers are those of the target, not of this Python; extras are followed; platform wheels are found."""
    project.declare(["alpha>=1", 'absent>=1; python_version < "3.12"', 'absent>=1; sys_platform == "win32"'])
    project.pin("alpha==1.2", "beta==2.0  # a remark", "gamma==3.0rc1")
    project.publish(
        "alpha==1.2", "Beta[fast]<3,>=2", 'absent; python_version <= "3.11"', 'absent; extra == "all"'
    )
    fast = 'gamma (>=3.0rc1) ; extra == "fast"'
    project.publish("beta==2.0", fast, tag="cp312-cp312-manylinux_2_39_x86_64", extras=["fast"])
    project.publish("gamma==3.0rc1", tag="cp310-abi3-manylinux2014_x86_64", python=">=3.12,<3.13")
    assert project.run() == 0
    assert capsys.readouterr().out.splitlines() == [
        "set: 3 pins for Python 3.12.3, Linux x86-64, glibc 2.39",
        "set: 3 requirements, 0 conflicts, 0 overridden",
    ]


def test_every_kind_of_conflict_at_once(project: Project, capsys: pytest.CaptureFixture) -> None:
    """One conflict does not hide another, and each line names who, what and the remedy."""
    override = '[[overridden]]\nsets = ["set"]\nof = "alpha"\nneeds = ["beta"]\nwhy = "old"\n'
    head = HEAD.replace("3.12.3", "3.11.7") + 'dockerfile = "Dockerfile"\n'
    project.declare(["alpha>=2"], override, head)
    project.pin(
        "alpha==1.0", "beta==2.0", "cuda-toolkit==12.9.1", "elsewhere==1.0", "nowhere==1.0", "young==1.0"
    )
    project.publish("alpha==1.0", "beta", "unheard-of[x]>=4", "cuda-toolkit<12")
    project.publish("beta==2.0")
    project.publish("cuda_toolkit==12.9.1")
    project.publish("elsewhere==1.0", tag="cp312-cp312-win_amd64")
    project.publish("nowhere==0.9")
    project.publish("young==1.0", python=">=3.12")
    assert project.run() == 1
    text = capsys.readouterr().out
    found = re.findall(r"  CONFLICT \((.*?)\) (.*)\n    -> (.*)", text)
    assert sorted(found) == sorted(
        [
            (
                "version",
                "this project needs alpha>=2 (setup.py), but alpha==1.0 is pinned",
                "pin alpha>=2",
            ),
            (
                "version",
                "alpha 1.0 needs cuda-toolkit<12, but cuda-toolkit==12.9.1 is pinned",
                "pin cuda-toolkit<12, or another alpha that accepts 12.9.1",
            ),
            (
                "unpinned",
                "alpha 1.0 needs unheard-of[x]>=4, which is not pinned",
                "add a pin of unheard-of[x]>=4",
            ),
            (
                "python",
                "young 1.0 needs Python >=3.12, but this is 3.11.7",
                "pin another version of young, or use another Python",
            ),
            (
                "no wheel",
                "elsewhere==1.0 has no wheel for CPython 3.11, Linux x86-64, glibc 2.39",
                "pin a version that has one (none), or declare it as built from source in pins.toml",
            ),
            (
                "no wheel",
                "nowhere==1.0 has no wheel for CPython 3.11, Linux x86-64, glibc 2.39",
                "pin a version that has one (0.9), or declare it as built from source in pins.toml",
            ),
            (
                "base image",
                "the base image has CUDA 13.0.3, but torch was built with 12.9.1; apex refuses to compile",
                "use a base image of 12.9",
            ),
            (
                "base image",
                "the base image (Ubuntu 24.04) has Python 3.12, but the pins are for 3.11.7",
                "change the base image, or the Python of pins.toml",
            ),
            (
                "override",
                "the override of alpha for beta is not needed: that requirement is met or gone",
                "remove it from pins.toml",
            ),
        ]
    )
    assert "set: 4 requirements, 9 conflicts" in text


def test_a_wheel_for_a_newer_glibc_is_not_taken(project: Project, capsys: pytest.CaptureFixture) -> None:
    project.declare(head=HEAD.replace("2.39", "2.34"))
    project.pin("alpha==1.0")
    project.publish("alpha==1.0", tag="cp312-cp312-manylinux_2_39_x86_64")
    assert project.run() == 1
    assert "alpha==1.0 has no wheel for CPython 3.12, Linux x86-64, glibc 2.34" in capsys.readouterr().out


def test_overrides_are_shown_with_their_reason(project: Project, capsys: pytest.CaptureFixture) -> None:
    project.declare(more='[[overridden]]\nsets = ["set"]\nof = "Alpha"\nneeds = ["beta"]\nwhy = "CPU only"\n')
    project.pin("alpha==1.0", "beta==1.0")
    project.publish("alpha==1.0", "beta==2.0")
    project.publish("beta==1.0", "alpha")
    assert project.run() == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  overridden: CPU only",
        "    alpha 1.0 needs beta==2.0, but beta==1.0 is pinned",
        "set: 2 requirements, 0 conflicts, 1 overridden",
    ]


def test_why_names_who_asks(project: Project, capsys: pytest.CaptureFixture) -> None:
    project.declare(more='[set.wanted]\n"beta<9" = "a reason"\n')
    project.pin("alpha==1.0", "beta==1.0")
    project.publish("alpha==1.0", "Beta>=1")
    project.publish("beta==1.0")
    assert project.run("--why", "BETA") == 0
    assert capsys.readouterr().out.splitlines() == ["this project: beta<9  (a reason)", "alpha 1.0: Beta>=1"]


def test_an_index_that_does_not_answer_is_no_conflict(
    project: Project, capsys: pytest.CaptureFixture
) -> None:
    project.pin("alpha==1.0")
    # Port 9 (discard) of this machine: refused at once.
    arguments = ["--constraints", str(project.constraints), "--pip=--index-url=http://127.0.0.1:9/simple"]
    assert main(arguments) == 2
    assert "error: cannot ask the package index: ERROR: " in capsys.readouterr().err


# -------------------- by given metadata


def test_what_is_built_from_source_is_compared_too(project: Project) -> None:
    """It is a commit, or a version without a wheel; what it declares stands in pins.toml."""
    commit = "a" * 40
    source = '[set.source.%s]\nrequires = ["beta>=2", "gamma"]\nwhere = "setup.py"\n'
    project.declare(["apex", "built==1.0"], source % "apex" + source % "built")
    project.pin(f"apex @ git+https://github.com/NVIDIA/apex@{commit}", "built==1.0", "beta==1.0")
    texts = [finding.text for finding in project.findings({"beta": []})]
    assert texts == [
        "apex needs beta>=2, but beta==1.0 is pinned",
        "apex needs gamma, which is not pinned",
        "built 1.0 needs beta>=2, but beta==1.0 is pinned",
        "built 1.0 needs gamma, which is not pinned",
    ]


def test_extras_of_extras_are_followed(project: Project) -> None:
    project.declare(["a[x]"])
    project.pin("a==1", "b==1", "c==1")
    declared = {
        "a": ['b[y_1]; extra == "x"'],
        "b": ['c[z]; extra == "y-1"'],
        "c": ['d; extra == "z"', 'e; extra == "w"'],
    }
    assert [finding.text for finding in project.findings(declared)] == ["c 1 needs d, which is not pinned"]


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        ("nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04", None),
        ("nvidia/cuda:13.1.0-cudnn-devel-ubuntu24.04", "CUDA 13.1.0, but torch was built with 13.0.3"),
        ("nvidia/cuda:13.0.3-devel-ubuntu22.04", "glibc 2.35, but wheels up to 2.39 are taken"),
    ],
)
def test_the_base_image_must_fit(image: str, kind: str | None, project: Project) -> None:
    project.declare(head=HEAD + 'dockerfile = "Dockerfile"\n')
    project.pin("cuda-toolkit==13.0.3.0")
    (project.root / "Dockerfile").write_text(f"# a remark\nFROM {image}\n")
    texts = [finding.text for finding in project.findings({"cuda-toolkit": []})]
    assert any(kind in text for text in texts) if kind else texts == []


@pytest.mark.parametrize(
    ("line", "good"),
    [
        ("a==1.0", True),
        ("a @ git+https://github.com/x/a@" + "0" * 40, True),
        ("a @ git+https://github.com/x/a@main", False),
        ("a>=1.0", False),
        ("a==1.*", False),
        ("a", False),
    ],
)
def test_only_exact_versions_and_commits_are_pins(line: str, good: bool) -> None:
    if good:
        assert parse_pin(line, "file:1").text == line
    else:
        with pytest.raises(PinsError, match=re.escape(f"file:1: {line!r} is not a pin")):
            parse_pin(line, "file:1")


def test_files_that_cannot_be_read(project: Project, capsys: pytest.CaptureFixture) -> None:
    """Missing, pinned twice, no such set, no base image: exit status 2 and a line that names it."""
    assert project.run() == 2
    project.pin("a==1", "A==2")
    assert project.run() == 2
    project.pin("a==1")
    assert project.run("other") == 2
    (project.constraints / "pins.toml").unlink()
    assert project.run() == 2
    errors = capsys.readouterr().err.splitlines()
    for error, part in zip(
        errors, ("set.txt", "a is pinned twice", "no set other", "pins.toml"), strict=True
    ):
        assert error.startswith("error: ") and part in error
    (project.root / "Dockerfile").write_text("FROM ubuntu:24.04\n")
    with pytest.raises(PinsError, match="no line `FROM nvidia/cuda"):
        base_image(project.root / "Dockerfile")


# -------------------- the pins of this repository


def sets() -> dict[str, PinSet]:
    return {pins.name: pins for pins in read_sets(REPOSITORY / "constraints")}


@pytest.mark.parametrize("name", ["gpu-py312", "cpu-py312", "cpu-py311"])
def test_the_projects_own_wishes_are_met(name: str) -> None:
    """Offline: setup.py, what pins.toml wants, and what source packages declare."""
    result = check(sets()[name], Answers({}, {}))
    assert len(result.needs) > 40
    # Without an index nothing is known that overrides could be for.
    assert [finding for finding in result.conflicts if finding.kind != "override"] == []


def test_the_dockerfile_installs_what_is_checked() -> None:
    """All pins of the set and no others, all without a resolver, and none of them in its own text."""
    text = (REPOSITORY / "Dockerfile").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    installed = set(re.findall(r"--requirement \S+/constraints/(\S+)", code))
    gpu = sets()["gpu-py312"]
    assert installed == {"gpu-py312.txt", "gpu-py312-source.txt"}
    assert gpu.dockerfile == REPOSITORY / "Dockerfile"
    for line in re.findall(r"pip install .*", code):
        assert "--no-deps" in line or line.startswith("pip install --constraint")
    assert "pip check" in code and "megatron-srpo doctor" in code
    assert "==" not in code.replace("== '13.0'", "") and "git+" not in code


def test_apex_is_never_taken_from_the_package_index() -> None:
    """There, it is an unrelated package."""
    apex = sets()["gpu-py312"].pins["apex"]
    assert apex.version is None and "github.com/NVIDIA/apex@" in apex.text
    assert all("apex" not in pins.pins for name, pins in sets().items() if name != "gpu-py312")


@pytest.mark.slow
def test_the_real_pins_of_the_container_fit() -> None:
    """Asks the package index, which a machine may not reach. The CPU sets are installed by who runs this."""
    pins = sets()["gpu-py312"]
    try:
        result = check(pins, ask(pins))
    except NoIndexError:
        pytest.skip("needs a package index that pip can reach")
    assert result.conflicts == []
    assert not result.findings  # nothing is overridden knowingly
    assert len(result.needs) > 400
