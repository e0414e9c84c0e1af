"""pip install that is neither silent for minutes nor a thousand lines; its last lines are shown when it fails."""

import subprocess
import sys
import threading
import time
from collections import deque


def main() -> int:
    """Runs pip with the given arguments; returns its exit code."""
    started = time.monotonic()
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *sys.argv[1:]]
    lines: deque[str] = deque(maxlen=30)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        done = threading.Event()
        threading.Thread(target=heartbeat, args=(done, lines, started), daemon=True).start()
        assert pip.stdout is not None
        lines.extend(iter(pip.stdout.readline, ""))
    done.set()
    if pip.returncode:
        sys.stderr.writelines(lines)
        sys.stderr.write("error: pip could not install the packages\n  see its lines above; make setup tries again\n")
        return 3
    print(f"environment  .venv is ready ({time.monotonic() - started:.0f} s)", flush=True)
    return 0


def heartbeat(done: threading.Event, lines: "deque[str]", started: float) -> None:
    """Says every 10 s what pip is at."""
    while not done.wait(10):
        told = [line for line in list(lines) if line.startswith(("Collecting", "Downloading", "Installing"))]
        what = "installing the packages" if told and told[-1][0] == "I" else "resolving and downloading the packages"
        print(f"environment  {what} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
