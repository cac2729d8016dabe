"""Builds a release; see scripts/release."""

import argparse
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REVISIONS = "worker/storage/migrations/versions"


def disagreements(version: str, changelog: str, tags: list[str]) -> list[str]:
    """What does not fit together of the version, the CHANGELOG and the tags of this commit."""
    found = re.search(r"^## (\S+)", changelog, re.M)
    section = found[1] if found else "nothing"
    ours = [tag for tag in tags if re.fullmatch(r"v\d.*", tag)]
    wanted = "Unreleased" if ".dev" in version else version
    wrong = []
    if section != wanted:
        wrong.append(f"CHANGELOG.md begins with {section}; {version} wants {wanted}")
    if ours and ours != [f"v{version}"]:
        wrong.append(f"this commit is tagged {', '.join(ours)}; {version} wants v{version}")
    return wrong


def changed_revisions(since: str) -> list[str]:
    """Database revisions of the version ``since`` (a tag) that are not as they were: databases in
    use have run them, and would not run them again."""
    command = ["diff", "--name-status", "--no-renames", since, "--", REVISIONS]
    lines = [line.split("\t") for line in _git(*command).splitlines()]
    return [path for status, path in lines if status != "A"]


def problems(version: str) -> list[str]:
    """Why this checkout is not to be released."""
    wrong = disagreements(
        version,
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        _git("tag", "--points-at", "HEAD").split(),
    )
    before = _git("tag", "--merged", "HEAD^", "--sort=-version:refname", "v*").split()[:1]
    for tag in before:
        wrong += [
            f"{path} has changed since {tag}: add a new one" for path in changed_revisions(tag)
        ]
    if _git("status", "--porcelain"):
        wrong.append("there are changes that are not committed")
    return wrong


def build(source: Path, to: Path, epoch: str) -> list[Path]:
    """Wheel and source of ``source``; files have the time ``epoch`` (seconds since 1970)."""
    to.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(to), str(source)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch, "PYTHONHASHSEED": "0"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, umask=0o022)
    return sorted(path for path in to.iterdir() if path.name.endswith((".whl", ".tar.gz")))


def bill_of_materials(source: Path, to: Path, epoch: str) -> Path:
    """What an installation with CUDA consists of, with hashes, as CycloneDX."""
    requirements = source / "deploy" / "requirements"
    lists = [
        (requirements / name).read_text(encoding="utf-8") for name in ("torch-cuda.txt", "kit.txt")
    ]
    command = [sys.executable, "-m", "cyclonedx_py", "requirements", "-", "--output-reproducible"]
    command += ["--pyproject", str(source / "pyproject.toml"), "--mc-type", "application"]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": epoch}
    subprocess.run(
        [*command, "-o", str(to)], input="".join(lists), text=True, env=environment, check=True
    )
    return to


def chart(source: Path, to: Path, epoch: str) -> Path:
    """The chart in one file, as helm installs it: the same bytes again, which ``helm package`` does
    not give."""
    folder = source / "deploy" / "chart"
    about = (folder / "Chart.yaml").read_text(encoding="utf-8")
    told = dict(re.findall(r"^(name|version): (\S+)$", about, re.M))
    made = to / f"{told['name']}-{told['version']}.tgz"
    with (
        made.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=int(epoch)) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(f"{told['name']}/{path.relative_to(folder)}")
            entry.size, entry.mtime, entry.mode = path.stat().st_size, int(epoch), 0o644
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Build a release of the version in pyproject.toml."
    )
    parser.add_argument("--to", type=Path, default=ROOT / "dist", help="a folder, which is emptied")
    parser.add_argument("--anyway", action="store_true", help="although something does not fit")
    options = parser.parse_args()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    wrong = problems(version)
    for problem in wrong:
        print(f"✗ {problem}", file=sys.stderr)
    if wrong and not options.anyway:
        return 1
    epoch = _git("log", "-1", "--format=%ct").strip()
    shutil.rmtree(options.to, ignore_errors=True)
    made = build(ROOT, options.to, epoch)
    made.append(bill_of_materials(ROOT, options.to / f"zimage_cluster-{version}.cdx.json", epoch))
    made.append(chart(ROOT, options.to, epoch))
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made]
    (options.to / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    for path in made:
        print(f"✓ {path}  {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    sys.exit(main())
