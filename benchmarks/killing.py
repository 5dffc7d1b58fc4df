"""Disturb a small study in every way, resume it, and compare its files with those of an undisturbed one, byte for byte.

    python benchmarks/killing.py [--sigkills 100] [--sigints 100] [--disks 20] [--workers 20] [--nodes 5] [--models 25]

Linux, as root: the script moves into a network namespace of its own, whose one way out is a cable to nowhere. Packets on it, and
listeners beyond loopback, are counted while everything runs. A quarter of the killed commands are new processes, which spend most
of their time loading libraries; the others are copies of this process with the libraries loaded, which spend it at work.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from threading import Thread

#: Two runs on the digits, of an epoch each.
STUDY = """
title = "Tiny"
seeds = 1
[data]
image_size = 10
canvas = 20
validation_images = 40
train_images = 100
test_images = 12
[network]
channels = [4, 6]
padding = "same"
[training]
max_epochs = 1
[grid]
network.factor = [2, 4]
[measure]
max_shift = 3
"""
IN_NAMESPACE = "SHIFTSCOPE_KILLING_CUT_OFF"
#: Address of the cable's end here. Two nodes of Ray cannot share a loopback address.
HERE = "10.9.9.1"
CUT_OFF = (
    "ip link set lo up && ip link add out0 type veth peer name out1 && ip link set out1 up && "
    f"ip addr add {HERE}/24 dev out0 && ip link set out0 up && ip route add default dev out0; "
    'sysctl -qw net.ipv6.conf.all.disable_ipv6=1; sleep 2; exec "$@"'
)
#: Of Linux's sys/prctl.h.
PR_SET_CHILD_SUBREAPER = 36
COMPARED = ("table.csv", "curves.csv", "layers.csv", "figure.svg", "figure.png")
#: A study with printed numbers.
PRINTED = Path(__file__).parents[1] / "results" / "digits"
#: Kept, because `subprocess` would wait for a forgotten process in our place.
LAUNCHED: list[subprocess.Popen[bytes]] = []
MODULE = [sys.executable, "-m", "shiftscope"]


class Network:
    """Watches listeners beyond loopback and packets that leave, while commands run."""

    def __init__(self) -> None:
        self.beyond: set[str] = set()
        self.samples = 0
        self.before = _sent()
        Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            listed = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=False).stdout.splitlines()
            self.beyond |= {line for line in listed if not line.split()[3].startswith(("127.", "[::1]"))}
            self.samples += 1
            time.sleep(0.5)

    def sentence(self) -> str:
        """Return what was seen."""
        return (
            f"{self.samples} samples of `ss -ltn`: {len(self.beyond)} listeners beyond loopback {sorted(self.beyond) or ''}; "
            f"{_sent() - self.before} packets left the machine"
        )


def _sent() -> int:
    """Return how many packets went into the cable."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return sum(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("out0:"))


def forked(arguments: list[str], log: Path) -> int:
    """Run a command in a copy of this process, as ``python -m shiftscope`` would; return the copy's process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = _as_a_command(arguments, log)
    finally:
        os._exit(code)


def _as_a_command(arguments: list[str], log: Path) -> int:
    from shiftscope.cli import main
    from shiftscope.runtime.stopping import exit_code, farewell, handle_signals, ignore_signals

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    handle_signals()
    try:
        code = main(arguments)
        ignore_signals()
    except KeyboardInterrupt:
        sys.stderr.write(farewell() + "\n")
        code = exit_code()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def launched(arguments: list[str], log: Path) -> int:
    """Run a command as a new process; return its id."""

    def heed_sigint() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it

    with log.open("w") as file:
        LAUNCHED.append(subprocess.Popen([*MODULE, *arguments], stdout=file, stderr=file, preexec_fn=heed_sigint))
    return LAUNCHED[-1].pid


def ended(process: int, within: float = 300.0) -> int | None:
    """Return the exit code of a process (negative for a signal) once it ends; None if it does not in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


class Campaign:
    """Disturbances of one study, each compared with the undisturbed one.

    Attributes:
        place: scratch folder.
        calm: folder of the undisturbed study.
        lasted: seconds that the undisturbed command took, by how it was run.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.calm = place, place / "calm"
        self.study = place / "tiny.toml"
        self.study.write_text(STUDY)
        self.moments = random.Random(0)  # noqa: S311  # moments to kill at, no secrets
        self.lasted: dict[Callable[[list[str], Path], int], float] = {}
        self.faults: list[str] = []
        os.environ["SHIFTSCOPE_CACHE"] = str(place / "cache")
        self._load()
        for run, folder in ((launched, place / "first"), (forked, self.calm)):
            started = time.monotonic()
            code = ended(run(self.command(folder), place / "calm.log"))
            assert code == 0, (place / "calm.log").read_text()
            self.lasted[run] = time.monotonic() - started
        apart = self.difference(place / "first")
        assert not apart, f"two undisturbed studies differ: {apart}"

    def _load(self) -> None:
        """Run the study in this process, so that its copies have every library loaded."""
        from shiftscope.cli import main

        with (self.place / "load.log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
            assert main(self.command(self.place / "loaded")) == 0

    def command(self, folder: Path, *options: str) -> list[str]:
        """Return the command that runs the study into a folder."""
        return ["study", str(self.study), "--out", str(folder), *(options or ("--workers", "1"))]

    def finish(self, folder: Path) -> str:
        """Resume the study to its end; return what is wrong with it, or an empty text."""
        code = ended(forked(self.command(folder), self.place / "finish.log"))
        if code != 0:
            return f"resumed: exit code {code}: {(self.place / 'finish.log').read_text()[-300:]}"
        return self.difference(folder)

    def difference(self, folder: Path) -> str:
        """Return how a study's files differ from the undisturbed one's, or an empty text."""
        weights = [path.relative_to(self.calm) for path in self.calm.rglob("*.safetensors")]
        names = [*map(Path, COMPARED), *weights]
        unlike = [str(name) for name in names if _content(self.calm / name) != _content(folder / name)]
        files = [{str(path.relative_to(each)) for path in each.rglob("*")} for each in (self.calm, folder)]
        return " ".join([*(f"{name} differs" for name in unlike), *(f"{name}: extra" for name in sorted(files[1] - files[0]))])

    def note(self, what: str, wrong: str) -> None:
        """Print how a disturbance ended."""
        if wrong:
            self.faults.append(f"{what}: {wrong}")
        print(f"{what}: {wrong or 'the same'}", flush=True)

    def fresh(self) -> Path:
        """Return a folder that does not exist."""
        folder = self.place / "disturbed"
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def signals(self, number: signal.Signals, count: int) -> None:
        """Send a signal at random moments of a command, each time of a new study."""
        done = 0
        while done < count:
            run = forked if done % 4 else launched
            folder, log, moment = self.fresh(), self.place / "signal.log", self.moments.uniform(0.1, self.lasted[run])
            code = _signalled(run(self.command(folder), log), number, moment)
            if code == 0:
                continue  # it was done before the signal came
            done += 1
            finished = len(list(folder.rglob("record.json")))
            wrong = self.finish(folder) or _unlike_a_stop(number, code, log.read_text())
            self.note(f"{number.name} {done} after {moment:.1f} s, {finished} runs finished", wrong)

    def model_signals(self, number: signal.Signals, count: int) -> None:
        """Send a signal at random moments of commands on a model; audits and certificates are resumed and compared."""
        (self.place / "mine.py").write_text(MODEL)
        model = [f"{self.place}/mine.py:model", "--images", "200"]
        kinds = {
            "audit": (
                ["audit", *model, "--protocol", "every-shift", "--protocol", "zhang2019"],
                ("table.csv", "maps.safetensors"),
            ),
            "certify": (["certify", *model, "--radius", "3"], ("certificate.csv", "images.csv")),
            "explain": (["explain", *model, "--max-shift", "2"], ()),
            "fix": (["fix", *model, "--with", "blur", "--max-shift", "2"], ()),
        }
        for kind, (arguments, files) in kinds.items():
            self._stop_and_resume(number, count, kind, arguments, files)

    def _stop_and_resume(
        self, number: signal.Signals, count: int, kind: str, arguments: list[str], files: tuple[str, ...]
    ) -> None:
        suffix = ".safetensors" if kind == "fix" else ""
        calm, log = self.place / f"calm_{kind}{suffix}", self.place / "stopped.log"
        started = time.monotonic()
        assert ended(forked([*arguments, "--out", str(calm)], log)) == 0, log.read_text()
        lasted, done = time.monotonic() - started, 0
        while done < count:
            folder, moment = self.fresh().with_suffix(suffix), self.moments.uniform(0, lasted)
            folder.unlink(missing_ok=True) if suffix else None
            code = _signalled(forked([*arguments, "--out", str(folder)], log), number, moment)
            if code == 0:
                continue  # it was done before the signal came
            done += 1
            wrong = _unlike_a_stop(number, code, log.read_text())
            if ended(forked([*arguments, "--out", str(folder)], log)) != 0:
                wrong += f" resumed: {log.read_text()[-300:]}"
            wrong += " ".join(f"{name} differs" for name in files if _content(calm / name) != _content(folder / name))
            self.note(f"{number.name} {done} of {kind} after {moment:.1f} s", wrong)

    def disks(self, count: int) -> None:
        """Fill the disk at random places of a study, then make room."""
        mount = self.place / "disk"
        mount.mkdir()
        need = sum(path.stat().st_size for path in self.calm.rglob("*") if path.is_file()) // 1024
        for turn in range(1, count + 1):
            size = self.moments.randint(8, need)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(mount)], check=True)
            try:
                log = self.place / "disk.log"
                code = ended(forked(self.command(mount / "study"), log))
                text = log.read_text()
                subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
                wrong = self.finish(mount / "study")
                if code not in (0, 2) or "Traceback" in text or (code and "cannot be written" not in text):
                    wrong += f" exit code {code}: {text[-300:]}"
                self.note(f"full disk {turn} of {size} KiB, exit code {code}", wrong)
            finally:
                subprocess.run(["umount", str(mount)], check=True)

    def lost_workers(self, count: int) -> None:
        """Kill worker processes at random moments; the command goes on."""
        lost = 0
        while lost < count:
            folder, log = self.fresh(), self.place / "workers.log"
            process = forked(self.command(folder, "--workers", "2"), log)
            here = 0
            while os.waitpid(process, os.WNOHANG) == (0, 0):
                time.sleep(self.moments.uniform(0.1, 6))
                at_work = [child for child in _children(process) if b"spawn_main" in _command_line(child)]
                if at_work and here < 2:
                    os.kill(self.moments.choice(at_work), signal.SIGKILL)
                    here += 1
            lost += here
            self.note(f"{lost} lost workers, {here} in this command", self.difference(folder))

    def lost_nodes(self, count: int) -> None:
        """Kill the second node of a Ray cluster of two at random moments; the command goes on."""
        for turn in range(1, count + 1):
            folder, log = self.fresh(), self.place / "nodes.log"
            with ray_cluster() as (address, second):
                command = self.command(folder, "--executor", "ray", "--address", address)
                process = launched(command, log)
                while not (folder / "study.json").exists():
                    time.sleep(0.1)
                time.sleep(self.moments.uniform(0, 25))
                early = process if os.waitpid(process, os.WNOHANG) == (0, 0) else None
                os.kill(second, signal.SIGKILL)
                code = ended(process) if early else -1
            wrong = self.difference(folder) or ("" if code == 0 else f"exit code {code}: {log.read_text()[-300:]}")
            finished = "at work" if early else "done already"
            self.note(f"lost node {turn}, the command {finished}", wrong)

    def commands(self) -> None:
        """Run every command that names no hub, without a network."""
        (self.place / "mine.py").write_text(MODEL)
        model = [f"{self.place}/mine.py:model", "--images", "40"]
        runs = [
            ["audit", *model, "--out", str(self.place / "audit")],
            ["audit", *model, "--workers", "2", "--protocol", "mouton2020"],
            ["check", str(self.place / "audit" / "audit.json")],
            ["certify", *model, "--radius", "2"],
            ["explain", *model, "--max-shift", "2"],
            ["fix", *model, "--with", "blur", "--max-shift", "2", "--out", str(self.place / "fixed.safetensors")],
            *(["figures", str(self.calm)], ["report", str(self.calm)], ["compare", str(PRINTED)], ["list", str(self.calm)]),
            *(["list"], ["theory"], ["selfcheck"], ["report", str(self.place / "audit")]),
            self.command(self.place / "ray", "--executor", "ray", "--workers", "1"),
        ]
        for arguments in runs:
            code = ended(launched(arguments, self.place / "command.log"))
            wrong = "" if code == 0 else f"exit code {code}: {(self.place / 'command.log').read_text()[-300:]}"
            self.note(f"without a network: {' '.join(arguments[:2])}", wrong)


MODEL = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
"""


def _signalled(process: int, number: signal.Signals, moment: float) -> int | None:
    """Send a signal to a process after so many seconds; return its exit code."""
    time.sleep(moment)
    os.kill(process, number)
    return ended(process)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _unlike_a_stop(number: signal.Signals, code: int | None, text: str) -> str:
    """Return how a command that a signal ended differs from one line and the signal's exit code."""
    if number == signal.SIGKILL:
        return "" if code == -signal.SIGKILL else f"exit code {code}"
    lines = [line for line in text.splitlines() if line.startswith(("Stopped.", "Stopped by"))]
    good = code == 128 + number and len(lines) == 1 and "Traceback" not in text
    return "" if good else f"exit code {code}, {len(lines)} lines: {text[-300:]}"


def _children(process: int) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def _command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


@contextmanager
def ray_cluster() -> Iterator[tuple[str, int]]:
    """Start two nodes of one core each by ``ray start``; yield the address and the process of the second; stop them."""
    start = [str(Path(sys.executable).parent / "ray"), "start", "--num-cpus=1", "--object-store-memory=100000000"]
    head = [*start, "--head", "--port=6399", "--include-dashboard=false", f"--node-ip-address={HERE}"]
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # what `ray start` leaves behind becomes this process's children
    try:
        subprocess.run(head, check=True, capture_output=True)
        first = _raylets()
        subprocess.run([*start, f"--address={HERE}:6399", f"--node-ip-address={HERE}"], check=True, capture_output=True)
        yield f"{HERE}:6399", next(each for each in _raylets() if each not in first)
    finally:
        while children := [child for child in _children(os.getpid()) if b"ss\0" not in _command_line(child)]:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


def _raylets() -> list[int]:
    return [child for child in _children(os.getpid()) if b"raylet/raylet" in _command_line(child).split(b"\0")[0]]


def main() -> None:
    """Disturb, resume, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, count in (("sigkills", 100), ("sigints", 100), ("sigterms", 5), ("disks", 20), ("workers", 20), ("nodes", 5)):
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--models", type=int, default=25, help="SIGINTs of each command on a model")
    parser.add_argument("--commands", type=int, default=1, help="run every command without a network")
    options = parser.parse_args()
    if IN_NAMESPACE not in os.environ:
        os.environ.update({IN_NAMESPACE: "1", "OMP_NUM_THREADS": "1"})
        os.execvp("unshare", ["unshare", "-n", "sh", "-c", CUT_OFF, "sh", sys.executable, *sys.argv])  # noqa: S606 - its own arguments, in a namespace
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        campaign, network = Campaign(Path(place)), Network()
        print(f"undisturbed: {json.dumps([round(each, 1) for each in campaign.lasted.values()])} s", flush=True)
        if options.commands:
            campaign.commands()
        campaign.model_signals(signal.SIGINT, options.models)
        campaign.signals(signal.SIGINT, options.sigints)
        campaign.signals(signal.SIGKILL, options.sigkills)
        campaign.signals(signal.SIGTERM, options.sigterms)
        campaign.disks(options.disks)
        campaign.lost_workers(options.workers)
        print(network.sentence(), flush=True)
        beyond = set(network.beyond)
        campaign.lost_nodes(options.nodes)  # its nodes are not started by a command of ours, and listen on the cable
    print(f"{len(campaign.faults)} faults", *campaign.faults, sep="\n")
    sys.exit(1 if campaign.faults or beyond else 0)


if __name__ == "__main__":
    main()
