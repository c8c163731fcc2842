"""On which device a site computes, also where accelerate keeps its weights elsewhere."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["execution_device", "site_device"]


def site_device(site: nn.Module) -> torch.device | None:
    """Device of a site's own parameters; of weights that accelerate keeps elsewhere, where they are brought to."""
    own = (p for name, p in site.named_parameters() if not name.startswith("reft."))
    device = next((parameter.device for parameter in own if not parameter.is_meta), None)
    return device if device is not None else execution_device(site)


def execution_device(site: nn.Module) -> torch.device | None:
    """Where accelerate's hooks bring the weights of a module that lies on disk; None where there are no such hooks."""
    for module in site.modules():
        hook = getattr(module, "_hf_hook", None)
        for each in getattr(hook, "hooks", (hook,)):
            device = getattr(each, "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None
