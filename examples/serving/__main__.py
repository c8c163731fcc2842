"""`python -m examples.serving`: trains three small voices, serves two of them, and loads the third while it serves.

It needs the extras `vllm`, `cli`, `trl` and `serving`, e.g. the environment of `make test-serving`. The third adapter
comes from a Hub on this machine, so nothing leaves it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tools.loopback_hub import LoopbackHub

OUTPUT = Path("demo-output") / "serving"
PROGRAM = str(Path(sys.executable).with_name("peft-reft"))
PATIENCE = 900


def main() -> None:
    """Fetch the base, train, push, serve, ask."""
    parser = argparse.ArgumentParser(prog="examples.serving", description=__doc__)
    parser.add_argument("--model", help="folder of a causal language model with a chat template")
    parser.add_argument("--eager", action="store_true", help="start faster, without compiling")
    chosen = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    base = chosen.model or _output("tools.base_model")
    subprocess.run([sys.executable, "-m", "examples.serving.train", base, str(OUTPUT)], check=True)
    with LoopbackHub() as hub:
        environment = {**os.environ, **hub.environment()}
        subprocess.run([PROGRAM, "push", str(OUTPUT / "robot"), "me/robot"], env=environment, check=True)
        _serve(base, environment, eager=chosen.eager)


def _serve(base: str, environment: dict[str, str], *, eager: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    adapters = [f"--adapter={name}={OUTPUT / name}" for name in ("emoji", "butler")]
    flags = ["--allow-runtime-loading", "--dtype=float32", "--max-model-len=256", "--max-num-seqs=16"]
    flags += [f"--port={port}", "--host=127.0.0.1", *(["--enforce-eager"] if eager else [])]
    command = [PROGRAM, "serve", base, *adapters, *flags]
    print(" ".join(command), flush=True)
    server = subprocess.Popen(command, env={"VLLM_CPU_KVCACHE_SPACE": "1", **environment})
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(server, url)
        subprocess.run([sys.executable, "-m", "examples.serving.ask", url, base], check=True)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    for _ in range(PATIENCE):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"the server did not start within {PATIENCE} s")


def _output(module: str) -> str:
    done = subprocess.run([sys.executable, "-m", module], check=True, text=True, stdout=subprocess.PIPE)
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
