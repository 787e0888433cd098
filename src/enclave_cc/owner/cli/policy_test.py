"""Run tests of policies: case files (.yaml, .yml, .json) and Rego tests (*_test.rego), of files or whole directories.

Needs no KBS. Exit code 1 if a test failed, 2 for a test that cannot be read, 0 if all passed.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from enclave_cc import console
from enclave_cc.errors import UsageError
from enclave_cc.owner.cli.policy_files import read_policy
from enclave_cc.owner.policy import cases

_CASES, _DATA = (".yaml", ".yml", ".json"), ("data.json", "data.yaml", "data.yml")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a case file, a Rego file or a directory")
    parser.add_argument("-r", "--run", metavar="REGEX", default="", help="only tests whose name matches")
    parser.add_argument("-v", "--verbose", action="store_true", help="show tests that pass, too")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    try:
        pattern = re.compile(arguments.run)
    except re.error as error:
        raise UsageError("usage", f"--run is no regular expression: {error}") from error
    results = [result for path in arguments.paths for result in _run_path(Path(path), pattern) if pattern.search(result.name)]
    if not results:
        raise UsageError("usage", "there are no tests", "Give case files, *_test.rego files, or a directory of them.")
    failed = [result for result in results if result.outcome != cases.PASS]
    if arguments.json:
        console.print_value([result.to_json() for result in results])
    else:
        for result in results if arguments.verbose else failed:
            print(f"{result.outcome.upper()}  {result.name}")
            for line in result.why:
                print(f"      {line}")
        print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def _run_path(path: Path, pattern: re.Pattern[str]) -> Iterator[cases.Result]:
    """A directory's files in order of their names; its Rego files together, as OPA does."""
    if not path.is_dir():
        if path.suffix in _CASES:
            yield from cases.run_cases(str(path), read_policy(str(path)), lambda name: read_policy(str(path.parent / name)))
        else:  # a Rego test, with the policies beside it
            own = {path, *(each for each in path.parent.glob("*.rego") if not each.name.endswith("_test.rego"))}
            yield from _run_rego(sorted(own), path.parent, pattern)
        return
    files = sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        if file.suffix in _CASES and file.name not in _DATA:
            yield from cases.run_cases(
                str(file),
                read_policy(str(file)),
                lambda name, base=file.parent: read_policy(str(base / name)),  # type: ignore[misc]
            )
    for directory in sorted({file.parent for file in files if file.name.endswith("_test.rego")}):
        yield from _run_rego([file for file in files if file.suffix == ".rego" and file.parent == directory], directory, pattern)


def _run_rego(files: list[Path], directory: Path, pattern: re.Pattern[str]) -> Iterator[cases.Result]:
    data: dict[str, object] = {}
    for name in _DATA:
        if (directory / name).is_file():
            data.update(cases.load_data(str(directory / name), read_policy(str(directory / name))))
    texts = {str(file): read_policy(str(file)) for file in files}
    yield from cases.run_rego(texts, data, wanted=lambda name: pattern.search(name) is not None)
