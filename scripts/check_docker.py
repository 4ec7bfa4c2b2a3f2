"""Check without Docker what the Dockerfile copies, installs and starts, and its health command.

python scripts/check_docker.py                     # everything; installs the pins, takes minutes
python scripts/check_docker.py --python PATH       # uses this Python's packages, installs nothing
python scripts/check_docker.py --build-arg TORCH_INDEX=   # as for docker build

The steps run in order in a temporary folder that stands for the root of the image: it holds only
what COPY takes and .dockerignore lets through, and absolute paths of ENV lead into it. RUN is
executed only if it calls pip, in an empty virtual environment; other RUN steps need root and an
image, and are listed as not run. CMD is then started at a free port, with and without a base path,
and the health command is tried before, during and after. Exit status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KNOWN = [
    "FROM",
    "ARG",
    "ENV",
    "WORKDIR",
    "COPY",
    "RUN",
    "USER",
    "VOLUME",
    "EXPOSE",
    "HEALTHCHECK",
    "CMD",
]
PATIENCE = 90  # seconds until the server answers
BASES = ("", "lab/samsvae")
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")  # dependencies that a build of torch pins itself
OF_PYTHON = ("pip", "setuptools", "wheel")
VISITOR = ROOT / "benchmarks" / "visitor.py"  # opens a page as a browser does
IMPORTED = "import app, samsvae_core, sys; sys.stdout.write(app.__file__)"
INSTALLED = (
    "import importlib.metadata as m, json, sys\n"
    "json.dump({d.metadata['Name']: d.version for d in m.distributions()}, sys.stdout)"
)


class Wrong(Exception):  # a finding of the check, not an error in it
    """A check that failed, in words."""


class Step(NamedTuple):
    """An instruction and the rest of its (continued) line."""

    word: str
    rest: str

    def values(self) -> list[str]:
        """Return the JSON form, or words split as in a shell."""
        if self.rest.startswith("["):
            found: list[str] = json.loads(self.rest)
            return found
        return shlex.split(self.rest)


def parse(text: str) -> list[Step]:
    """Return the steps of a Dockerfile. Raises Wrong for what this check does not understand."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\[ \t]*\n", " ", "\n".join(lines))
    steps = []
    for line in filter(str.strip, joined.splitlines()):
        word, _, rest = line.strip().partition(" ")
        if word.upper() not in KNOWN or "<<" in rest:
            raise Wrong(f"{line[:60]!r} is not understood by this check; extend it.")
        if word.upper() in ("COPY", "WORKDIR", "ENV") and ("$" in rest or rest.startswith("--")):
            raise Wrong(f"{line[:60]!r} has a variable or an option, which this check knows not.")
        steps.append(Step(word.upper(), rest.strip()))
    if [step.word for step in steps].count("FROM") != 1 or steps[0].word != "FROM":
        raise Wrong("One FROM, as the first step, was expected.")
    return steps


def ignored(path: str, patterns: list[str]) -> bool:
    """Return whether .dockerignore excludes a file; the last pattern that matches decides."""
    out = False
    for pattern in patterns:
        wanted = re.escape(pattern.removeprefix("!").strip("/"))
        for escaped, meant in ((r"\*\*/", "(?:.*/)?"), (r"\*\*", ".*"), (r"\*", "[^/]*")):
            wanted = wanted.replace(escaped, meant)
        if re.fullmatch(f"{wanted}(?:/.*)?", path):
            out = not pattern.startswith("!")
    return out


@dataclass
class Image:
    """The result of the steps: a root folder, and how its program is started."""

    root: Path
    workdir: PurePosixPath = PurePosixPath("/")
    env: dict[str, str] = field(default_factory=dict)
    args: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    volumes: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def inside(self, path: PurePosixPath) -> Path:
        """Return a path of the image in the folder that stands for it."""
        return self.root / path.relative_to("/")

    @property
    def here(self) -> Path:
        return self.inside(self.workdir)


def say(what: str) -> None:
    print(f"ok    {what}", flush=True)


def copy(image: Image, step: Step, context: Path, patterns: list[str]) -> None:
    """Do COPY: take what exists and .dockerignore does not exclude."""
    *sources, target = step.values()
    for source in sources:
        path = context / source
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        kept = [p for p in files if not ignored(p.relative_to(context).as_posix(), patterns)]
        if not kept:
            why = "is kept out by .dockerignore" if files else "is not there"
            raise Wrong(f"COPY {source}: it {why}.")
        if secret := [p for p in kept if p.name == "secrets.toml" or ".git" in p.parts]:
            raise Wrong(f"COPY {source} would take {secret[0]} into the image.")
        for file in kept:
            below = file.relative_to(path) if path.is_dir() else Path(file.name)
            place = image.inside(image.workdir / target) / below
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
        say(f"COPY {source}: {len(kept)} file{'s' if len(kept) > 1 else ''}")


def build(
    steps: list[Step], context: Path, root: Path, python: Path | None, args: dict[str, str]
) -> tuple[Image, Path]:
    """Take every step; returns the image and the Python of its environment, given or new."""
    image, file = Image(root), context / ".dockerignore"
    lines = file.read_text().splitlines() if file.exists() else []
    patterns = [line for line in lines if line.strip() and not line.startswith("#")]
    install = python is None
    for step in steps:
        match step.word:
            case "FROM":
                wanted = re.match(r"python:(\d+\.\d+)", step.rest)
                if wanted is None:
                    raise Wrong(f"FROM {step.rest}: an image python:X.Y was expected.")
                python = python or fresh(root.parent / "venv", wanted[1])
                say(f"FROM {step.rest}: {python}")
            case "ARG":
                name, _, default = step.rest.partition("=")
                image.args[name] = args.get(name, default)
            case "ENV":
                for pair in step.values():
                    name, _, value = pair.partition("=")
                    value = str(image.inside(PurePosixPath(value))) if value[:1] == "/" else value
                    image.env[name] = value
            case "WORKDIR":
                image.workdir = image.workdir / step.rest
                image.here.mkdir(parents=True, exist_ok=True)
            case "COPY":
                copy(image, step, context, patterns)
            case "RUN" if "pip install" in step.rest and install:
                assert python is not None
                run(["bash", "-ec", step.rest], image, python, image.args, shown=True)
                say(f"RUN {step.rest[:70]}")
            case "RUN":
                print(f"not run: {' '.join(step.rest.split())[:90]}")
            case "USER":
                image.user = step.rest
            case "VOLUME":
                image.volumes += step.values()
            case "HEALTHCHECK":
                image.health = json.loads(step.rest[step.rest.index("CMD ") + 4 :])
            case "CMD":
                image.command = step.values()
    if image.user.split(":")[0] in ("root", "0"):
        raise Wrong("The image runs as root; a USER was expected.")
    if not image.volumes or not image.command or not image.health:
        raise Wrong("VOLUME, CMD and HEALTHCHECK were expected.")
    assert python is not None
    return image, python


def fresh(folder: Path, version: str) -> Path:
    """Return the Python of an empty virtual environment of this version."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = sys.executable if here == version else shutil.which(f"python{version}")
    if found is None:
        raise Wrong(f"Python {version}, as in the image, is not on this machine.")
    subprocess.run([found, "-m", "venv", folder], check=True)
    return folder / "bin" / "python"


def environment(image: Image, python: Path, more: dict[str, str]) -> dict[str, str]:
    """Return the image's environment, with this machine's PATH and pip settings only."""
    passed = ("PIP_", "SSL_", "REQUESTS_", "http_", "https_", "HTTP_", "HTTPS_", "no_", "NO_")
    own = {name: value for name, value in os.environ.items() if name.startswith(passed)}
    home = image.root / "home"
    home.mkdir(exist_ok=True)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return own | {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8"} | image.env | more


def run(
    command: list[str], image: Image, python: Path, more: dict[str, str], shown: bool = False
) -> str:
    """Run a command in the image's folder and return its output; raises Wrong if it fails."""
    ended = subprocess.run(
        command,
        cwd=image.here,
        env=environment(image, python, more),
        stdout=None if shown and "--verbose" in sys.argv else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise Wrong(f"{shlex.join(command)[:200]} ended with {ended.returncode}:\n{ended.stdout}")
    return ended.stdout or ""


def pins(image: Image, python: Path) -> None:
    """Check that every installed package is pinned at its version, and that they are compatible."""
    lines = (image.here / "requirements.txt").read_text().splitlines()
    wanted = dict(line.split("#")[0].strip().split("==") for line in lines if "==" in line)
    found = json.loads(run([str(python), "-c", INSTALLED], image, python, {}))
    found = {normal(name): version.split("+")[0] for name, version in found.items()}
    for name, version in wanted.items():
        if found.get(normal(name)) != version:
            raise Wrong(f"{name}=={version} is pinned, installed is {found.get(normal(name))}.")
    own = {normal(name) for name in wanted} | {*OF_PYTHON, "samsvae-explorer"}
    if more := sorted(name for name in set(found) - own if not OF_TORCH.match(name)):
        raise Wrong(f"Installed but not pinned: {', '.join(more)}.")
    run([str(python), "-m", "pip", "check"], image, python, {})
    say(f"{len(wanted)} pins installed into an empty environment, nothing beside them")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def healthy(image: Image, python: Path, more: dict[str, str]) -> bool:
    command = [str(python) if image.health[0] == "python" else image.health[0], *image.health[1:]]
    env = environment(image, python, more)
    ended = subprocess.run(command, cwd=image.here, env=env, capture_output=True, check=False)
    return ended.returncode == 0


@contextmanager
def started(image: Image, python: Path, more: dict[str, str], log: Path) -> Iterator[None]:
    """Run CMD inside the block, once its health command answers."""
    command = [str(python) if image.command[0] == "python" else image.command[0]]
    with log.open("w") as file:
        server = subprocess.Popen(
            command + image.command[1:],
            cwd=image.here,
            env=environment(image, python, more),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + PATIENCE
        while not healthy(image, python, more):
            if server.poll() is not None or time.monotonic() > end:
                raise Wrong(f"CMD does not come to answer:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
        if server.poll() is not None:
            raise Wrong(f"The server ended by itself:\n{log.read_text()[-2000:]}")
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            raise Wrong("The server does not end within 20 s of SIGTERM.") from None


def serve(image: Image, python: Path, visit: bool) -> None:
    """Start CMD under each base path, and try its health command before, during and after."""
    path = run([str(python), "-c", IMPORTED], image, python, {})
    if not Path(path).is_relative_to(image.root):
        raise Wrong(f"The program is imported from {path}, not from what was copied.")
    before = written(image)
    for base in BASES:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        more = {"STREAMLIT_SERVER_PORT": port, "STREAMLIT_SERVER_BASE_URL_PATH": base}
        if healthy(image, python, more):
            raise Wrong("The health command is content though nothing runs.")
        with started(image, python, more, image.root.parent / "server.log"):
            say(f"CMD starts{f' below /{base}' if base else ''}; its health command answers")
            other = {**more, "STREAMLIT_SERVER_BASE_URL_PATH": "" if base else "elsewhere"}
            if healthy(image, python, other):
                raise Wrong("The health command is content with another base path.")
            if visit and base:
                url = f"http://127.0.0.1:{port}/{base}".rstrip("/")
                told = run([str(python), str(VISITOR), url], image, python, {})
                say(f"a visitor is served: {told.strip()}")
        if healthy(image, python, more):
            raise Wrong("The health command is content after the server has ended.")
        say("stopped by SIGTERM: the health command fails")
    if changed := sorted(written(image) ^ before):
        raise Wrong(f"Written outside {image.volumes} and /tmp: {changed[0][0]}.")
    say("nothing was written outside of the volume and /tmp: the root can be read-only")


def written(image: Image) -> set[tuple[str, int]]:
    """Return the image's files with their times of change, except in places that may be written."""
    free = [image.inside(PurePosixPath(path)) for path in [*image.volumes, "/tmp"]]
    return {
        (str(path), path.lstat().st_mtime_ns)
        for path in image.root.rglob("*")
        if path.is_file() and not any(path.is_relative_to(place) for place in free)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", type=Path, help="use its packages; install nothing")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--context", type=Path, default=ROOT, help="the folder of the Dockerfile")
    parser.add_argument("--no-visit", action="store_true", help="do not open a page")
    parser.add_argument("--verbose", action="store_true", help="show what pip says")
    given = parser.parse_args()
    args = dict(text.partition("=")[::2] for text in given.build_arg)
    with tempfile.TemporaryDirectory(prefix="samsvae-image-") as folder:
        root = Path(folder).resolve() / "root"
        root.mkdir()
        try:
            steps = parse((given.context / "Dockerfile").read_text())
            image, python = build(steps, given.context, root, given.python, args)
            if given.python is None:
                pins(image, python)
            serve(image, python, not given.no_visit)
        except Wrong as wrong:
            print(f"WRONG {wrong}")
            return 1
    print("The Dockerfile holds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
