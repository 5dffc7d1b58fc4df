"""Kill a study at random moments, restart it each time, and compare its files with those of an undisturbed one, byte for byte.

    python benchmarks/killing.py [--kills 20] [--seeds 1] [--workers 2]

The study of the digits, in worker processes. Only the command's own process is killed, as by a system that runs out of memory.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Kill, restart, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--longest", type=float, default=20.0, help="most seconds between a start and a kill")
    options = parser.parse_args()
    moments = random.Random(0)  # noqa: S311  # moments to kill at, no secrets
    with tempfile.TemporaryDirectory() as place:
        calm, killed = Path(place) / "calm", Path(place) / "killed"
        command = [sys.executable, "-m", "shiftscope", "study", "digits", "--seeds", str(options.seeds)]
        command += ["--workers", str(options.workers), "--out"]
        subprocess.run([*command, str(calm)], check=True, capture_output=True)
        kills = early = 0
        while kills < options.kills:
            running = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            time.sleep(moments.uniform(0, options.longest))
            if running.poll() is None:
                running.send_signal(signal.SIGKILL)
                kills += 1
            else:
                early += 1
            running.wait()
            finished = len(list(killed.rglob("record.json")))
            print(f"kill {kills}: {finished} runs finished", flush=True)
            if early > 2:  # the study is finished: start over
                for path in sorted(killed.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() else path.unlink()
                early = 0
        subprocess.run([*command, str(killed)], check=True, capture_output=True)
        names = ["table.csv", "figure.svg", "figure.png"]
        weights = sorted(path.relative_to(calm) for path in calm.rglob("*.safetensors"))
        same = all((calm / name).read_bytes() == (killed / name).read_bytes() for name in [*map(Path, names), *weights])
        files = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (calm, killed)]
        print(
            f"{kills} kills: table, figures and {len(weights)} tensor files {'the same' if same else 'DIFFERENT'}, byte for byte"
        )
        print("nothing left over" if files[0] == files[1] else f"left over: {sorted(map(str, files[1] - files[0]))}")
        sys.exit(0 if same and files[0] == files[1] else 1)


if __name__ == "__main__":
    main()
