"""`python -m tools.loopback_hub [--port N]`: serve until interrupted, and say how to reach it."""

from __future__ import annotations

import argparse
import shlex
import threading

from . import LoopbackHub


def main() -> None:
    """Serves, and prints the endpoint and the exports for a client's shell."""
    parser = argparse.ArgumentParser(prog="python -m tools.loopback_hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes any free one")
    with LoopbackHub(port=parser.parse_args().port) as hub:
        print(f"# {hub.endpoint}, tokens: {hub.token} (write), {hub.read_token} (read), Ctrl-C ends", flush=True)
        for name, value in hub.environment().items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
