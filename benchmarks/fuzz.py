"""Run thousands of hostile inputs through the command line, and count what must not happen.

    python benchmarks/fuzz.py [--cases 10000] [--start 0] [--campaign "model files"] [--out FILE]

Each case is a command in a process of its own, forked from one in which the libraries are loaded, with limits on memory and time.
A case counts as a finding if it shows a traceback, dies by a signal, is still at work after 60 seconds, writes outside its output
folder, changes a canary, exits with a code that is not documented, or prints control characters or a line of over 300 characters.
A training that a damaged study asks for and that is under way is stopped after five seconds, and counted apart.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import fuzz_cases
from fuzz_cases import Bases
from fuzz_values import every_value

__all__ = ["CAMPAIGNS", "Result", "run_case", "warm_up"]

CAMPAIGNS = {**fuzz_cases.CAMPAIGNS, "every value": every_value}
#: Share of the cases in each campaign.
SHARES = {
    "study files": 0.31,
    "files of a study": 0.22,
    "model files": 0.14,
    "command lines": 0.12,
    "images and parquet": 0.05,
    "every value": 0.16,
}
HANG_SECONDS = 60.0
#: A case that trains is left alone for so long.
WORKING_SECONDS = 5.0
MEMORY = 4 << 30
LONGEST_LINE = 300
EXIT_CODES = (0, 1, 2)
TRAINING = re.compile(r"training|epoch|computing|measuring|classifying|drawing|images/s")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
CANARY = b"canary"
#: A line of what ``--json`` prints.
JSON = re.compile(r"\s*(\"|[\[\]{}])")


@dataclass(frozen=True)
class Result:
    """What a case did.

    Attributes:
        campaign, seed: which case.
        words: the command line.
        findings: what must not happen, in words; empty if nothing did.
        code: exit code; negative for a signal.
        seconds: how long it took.
        memory: its peak, bytes.
        working: whether a training under way was stopped.
        tail: the end of standard error.
    """

    campaign: str
    seed: int
    words: tuple[str, ...]
    findings: tuple[str, ...]
    code: int
    seconds: float
    memory: int
    working: bool
    tail: str


def warm_up() -> None:
    """Load the libraries, so that forked processes need not; from then on no module of this folder shadows one of theirs."""
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
    import PIL.Image
    import pyarrow.parquet
    import sklearn.datasets
    import torch
    import torch.export

    import shiftscope.audits.job
    import shiftscope.audits.task_measuring
    import shiftscope.audits.task_results
    import shiftscope.certificates.job
    import shiftscope.certificates.reading
    import shiftscope.cli
    import shiftscope.explanations
    import shiftscope.figures.study
    import shiftscope.models
    import shiftscope.report.write
    import shiftscope.studies.comparison
    import shiftscope.studies.runner
    import shiftscope.surgery.compare  # noqa: F401 - loaded before processes are forked

    torch.set_num_threads(1)
    PIL.Image.init()
    sklearn.datasets.load_digits()
    assert pyarrow.parquet


def bases_in(place: Path) -> Bases:
    """Write the valid inputs in a process of its own, and return them."""
    process = os.fork()
    if not process:
        code = 1
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the rest of this process
            fuzz_cases.make_bases(place)
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise RuntimeError("the valid inputs cannot be made")
    return fuzz_cases.known_bases(place)


def run_case(campaign: str, seed: int, bases: Bases, *, hang: float = HANG_SECONDS) -> Result:
    """Run one case and return what it did.

    Args:
        campaign: a name in ``CAMPAIGNS``.
        seed: of the case.
        bases: valid inputs.
        hang: seconds after which a command is stopped.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for part in ("in", "out", "cwd", "home"):
            (place / part).mkdir()
        (place / "canary").write_bytes(CANARY)
        (place / "cwd" / "canary").write_bytes(CANARY)
        words = CAMPAIGNS[campaign](random.Random(f"{campaign}/{seed}"), bases, place)  # noqa: S311 - no secrets
        before = _listed(place)
        code, seconds, memory, working = _run(words, place, hang)
        output = (place / "stderr").read_bytes(), (place / "stdout").read_bytes()
        errors, printed = (each.decode(errors="surrogateescape") for each in output)
        crash = "".join(path.read_text() for path in (place / "home").rglob("error-*.txt"))
        findings = [*_of_ending(code, seconds, errors + crash, hang, working=working), *_of_text(errors + printed)]
        out = words[words.index("--out") + 1 :][:1] if "--out" in words else []
        asked = tuple(f"cwd/{Path(each).parts[0]}" for each in out if _is_inside(Path(each)))
        changed = sorted(each for each in _listed(place) ^ before if not each[0].startswith(asked))
        findings += [f"wrote outside: {each}" for each in changed]
        if memory > MEMORY:
            findings.append(f"took {memory >> 20} MiB")
        tail = (errors + crash)[-3000:]
        return Result(campaign, seed, tuple(words), tuple(findings), code, seconds, memory, working, tail)


def _is_inside(out: Path) -> bool:
    """Return whether an output folder is one in the current folder."""
    return bool(out.parts) and not out.is_absolute() and not {"..", "canary"} & set(out.parts)


def _run(words: list[str], place: Path, hang: float) -> tuple[int, float, int, bool]:
    """Run a command in a forked process; return its exit code, seconds, peak of memory, and whether it was stopped at work."""
    started = time.monotonic()
    process = os.fork()
    if not process:
        _child(words, place)
    working = False
    while True:
        done, status, usage = os.wait4(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - started, usage.ru_maxrss * 1024, working
        elapsed = time.monotonic() - started
        busy = elapsed > WORKING_SECONDS and TRAINING.search((place / "stderr").read_text(errors="replace")) is not None
        if busy or elapsed > hang:
            working = busy
            os.killpg(process, signal.SIGKILL)
        time.sleep(0.005 if elapsed < 1 else 0.05)


def _child(words: list[str], place: Path) -> None:
    """Run a command and end this process with its exit code."""
    code = 99
    try:
        os.setpgid(0, 0)
        for name, number in (("stdout", 1), ("stderr", 2)):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(number, "w", errors="backslashreplace") for number in (1, 2))  # noqa: SIM115, PTH123 - descriptors
        os.chdir(place / "cwd")
        sys.modules["__main__"] = ModuleType("__main__")  # a process that the command starts would import this script again
        warnings.resetwarnings()  # as in a process of the user's own, not as in the tests
        warnings.simplefilter("ignore", DeprecationWarning)
        os.environ |= {
            "HOME": str(place / "home"),
            "XDG_CACHE_HOME": str(place / "home"),
            "HF_HUB_OFFLINE": "1",
            "BROWSER": "true",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        sys.dont_write_bytecode = True  # Python's own files beside a user's code are no finding
        virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (virtual + MEMORY, virtual + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        from shiftscope.cli import main

        code = main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 98
    except BaseException:
        traceback.print_exc()
        code = 97
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _of_ending(code: int, seconds: float, errors: str, hang: float, *, working: bool) -> list[str]:
    """Return what must not happen about a command's end."""
    if working:
        return []
    if seconds > hang:
        return [f"still at work after {seconds:.0f} s"]
    if "Traceback (most recent call last)" in errors or code == os.EX_SOFTWARE:
        frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', errors)
        ours = next((f"{Path(file).name}:{line} {name}" for file, line, name in reversed(frames) if "shiftscope" in file), "?")
        return [f"traceback at {ours}: {errors.strip().splitlines()[-1][:150]}"]
    if code < 0:
        return [f"died by {signal.Signals(-code).name}"]
    return [] if code in EXIT_CODES else [f"exit code {code}"]


def _of_text(text: str) -> list[str]:
    """Return what must not be printed."""
    found = CONTROL.search(text)
    findings = [f"control character {found[0]!r} in {text[max(0, found.start() - 60) : found.start()]!r}"] if found else []
    longest = max(
        (line for line in text.splitlines() if line.startswith("shiftscope: ") or ("  " in line[:2] and not JSON.match(line))),
        key=len,
        default="",
    )
    if len(longest) > LONGEST_LINE + len("shiftscope: ") and not longest.startswith(("  shiftscope ", "  python ")):
        findings.append(f"a line of {len(longest)} characters: {longest[:90]!r} ... {longest[-60:]!r}")
    return findings


def _listed(place: Path) -> set[tuple[str, int, bytes]]:
    """Return every file that a command may not write: what is beside its output, its cache and studies/."""
    found = set()
    for folder in ("in", "cwd", "."):
        for path in (place / folder).rglob("*") if folder != "." else place.glob("*"):
            inside = os.fsencode(path.relative_to(place)).decode(errors="backslashreplace")
            if not inside.startswith(("cwd/studies", "cwd/figures", "stdout", "stderr")):
                status = path.lstat()
                canary = path.read_bytes() if path.name == "canary" else b""
                found.add((inside, status.st_size if path.is_file() else 0, canary))
    return found


def main() -> None:
    """Run the campaigns and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0, help="the first seed of each campaign")
    parser.add_argument("--campaign", choices=sorted(CAMPAIGNS), action="append")
    parser.add_argument("--out", type=Path, help="file for the summary")
    parser.add_argument("--log", type=Path, help="file for the findings, one JSON object a line")
    options = parser.parse_args()
    warm_up()
    campaigns = options.campaign or list(CAMPAIGNS)
    total = sum(SHARES[name] for name in campaigns)
    with tempfile.TemporaryDirectory() as place:
        bases = bases_in(Path(place))
        lines = []
        for name in campaigns:
            count = round(options.cases * SHARES[name] / total)
            results = []
            for seed in range(options.start, options.start + count):
                result = run_case(name, seed, bases)
                results.append(result)
                if result.findings:
                    print(f"{name} {seed}: {'; '.join(result.findings)}"[:600], flush=True)
                    if options.log:
                        with options.log.open("a") as log:
                            log.write(json.dumps(vars(result)) + "\n")
            lines.append(summary(name, options.start, results))
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join([HEADER, *lines]) + "\n")


HEADER = (
    "campaign              cases  seeds           tracebacks  signals  over 60 s  files outside  canary  long lines  control  "
    "other  stopped at work  slowest  peak memory"
)
KINDS = ("traceback", "died", "still at work", "wrote outside", "canary", "a line of", "control", "")


def summary(name: str, start: int, results: list[Result]) -> str:
    """Return a line of the table: how often each thing happened that must not."""
    counted: Counter[str] = Counter()
    for result in results:
        for finding in result.findings:
            kind = next(kind for kind in KINDS if finding.startswith(kind))
            counted["canary" if kind == "wrote outside" and "canary" in finding else kind] += 1
    counts = [counted[kind] for kind in KINDS]
    seeds = f"{start}-{start + len(results) - 1}"
    slowest = max((each.seconds for each in results if not each.working), default=0.0)
    peak = max((each.memory for each in results), default=0)
    stopped = sum(each.working for each in results)
    widths = (10, 7, 9, 13, 6, 10, 7, 5)
    cells = "  ".join(f"{count:>{width}}" for count, width in zip(counts, widths, strict=True))
    return f"{name:20}  {len(results):>5}  {seeds:14}  {cells}  {stopped:>15}  {slowest:>5.1f} s  {peak >> 20:>7} MiB"


if __name__ == "__main__":
    main()
