"""A small Hub on the loopback interface, driven by the real `huggingface_hub` client.

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "client.py"], env=os.environ | hub.environment(), check=True)

`python -m tools.loopback_hub` serves one until it is interrupted.
"""

from .server import LoopbackHub
from .wire import ClientLeakedTokenError, HubFailedError, LoggedRequest

__all__ = ["ClientLeakedTokenError", "HubFailedError", "LoggedRequest", "LoopbackHub"]
