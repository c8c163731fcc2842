"""What transformers is about to save: it writes our config first and the weights after it, and calls nothing then.

`PreTrainedModel.save_pretrained` of a model with `add_adapter` asks PEFT for the adapter's tensors, saves the config
and then writes the file (transformers/modeling_utils.py). So the manifest is written in advance, for the very file
that is to come: until it is there, and if another one comes, the folder is refused.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from peft_reft.hub_format.envelope import MODEL_PREFIX
from peft_reft.hub_format.manifest import WEIGHTS_NAME
from peft_reft.hub_format.tensors import read_tensor_table
from peft_reft.hub_format.writer import ComingWeights

__all__ = ["Outgoing", "outgoing_of"]


@dataclass
class Outgoing:
    """An adapter's tensors between PEFT's collecting them and their being written.

    Attributes:
        model: that carries the adapter.
        tensors: by the model's names; PEFT goes on filling it after it was handed out.
        saved_name: the model's name of a tensor → the file's.
    """

    model: PreTrainedModel
    tensors: dict[str, Tensor]
    saved_name: Any

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """No part of a copy of the config that holds it."""
        return type(None), ()

    def coming(self, folder: Path) -> ComingWeights | None:
        """The weights file as transformers will write it into a folder; None where that cannot be told.

        It cannot where the tensors are not all here, or where a quantiser adds to the file's header.
        """
        quantizer = getattr(self.model, "hf_quantizer", None)
        if quantizer is not None and quantizer.get_state_dict_and_metadata(self.model)[1]:
            return None
        named = {f"{MODEL_PREFIX}{self.saved_name(name)}": tensor for name, tensor in self.tensors.items()}
        if any(tensor.is_meta or hasattr(tensor, "placements") for tensor in named.values()):
            return None
        named = remove_tied_weights_from_state_dict(named, self.model)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter_model.") as temporary:
            path = Path(temporary, WEIGHTS_NAME)
            save_file({name: value.contiguous() for name, value in named.items()}, path, metadata={"format": "pt"})
            return ComingWeights.of(path, read_tensor_table(path))


def outgoing_of(model: nn.Module, tensors: dict[str, Tensor], saved_name: Any) -> Outgoing | None:
    """An adapter's tensors, where transformers asks for them; None where PEFT does, which writes them first."""
    if isinstance(model, PeftModel) or not getattr(model, "_hf_peft_config_loaded", False):
        return None
    return Outgoing(model, tensors, saved_name) if isinstance(model, PreTrainedModel) else None
