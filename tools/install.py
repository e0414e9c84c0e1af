"""pip install that is neither silent for minutes nor a thousand lines: one line a package group, the log on failure."""

import subprocess
import sys
import tempfile
import time


def main() -> int:
    """Runs pip with the given arguments; returns its exit code."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *sys.argv[1:]]
        pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert pip.stdout is not None
        for line in pip.stdout:
            log.write(line)
            if line.startswith(("Downloading torch-", "Installing collected")):
                word = "downloading torch" if line.startswith("Down") else "installing"
                print(f"environment  {word} ({time.monotonic() - started:.0f} s)", flush=True)
        code = pip.wait()
        if code:
            log.seek(0)
            sys.stderr.write("".join(log.readlines()[-30:]))
            sys.stderr.write(
                "error: pip could not install the packages\n  see its lines above; make setup tries again\n"
            )
            return 3
    print(f"environment  .venv is ready ({time.monotonic() - started:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
