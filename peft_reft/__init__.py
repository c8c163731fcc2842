"""ReFT (representation finetuning) for Hugging Face PEFT. Importing this package registers the method with PEFT.

>>> from peft import get_peft_model
>>> from peft_reft import ReftConfig
>>> config = ReftConfig(task_type="CAUSAL_LM", r=4, positions="f7+l7")  # the first and the last 7 tokens of a prompt
>>> model = get_peft_model(base, config)  # stock PEFT, on a transformers model; then train it with any trainer
>>> model.save_pretrained("my-reft")

`help(ReftConfig)` explains every field; `peft_reft.integrations` has helpers for data, trainers and servers,
`peft_reft.causal` finds where in a network a variable stands. In a terminal: `peft-reft --help`.
"""

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils.peft_types import register_peft_method

from .adapters.heads import drop_closed_heads, select_heads
from .adapters.hotswap import hotswap_adapter, prepare_for_hotswap
from .adapters.scaling import scale_adapter
from .adapters.subspaces import set_subspaces
from .adapters.values import set_value
from .config import ReftConfig
from .generation.export_prefix import export_prefix
from .generation.prompt_cache import prompt_cache
from .interventions import Intervention, register_intervention
from .mixed import MixedReftModel
from .model import ReftModel
from .register import REFT
from .runtime.position_warning import PositionWarning
from .storage.convert import convert
from .storage.hub import list_adapters, pull, push_to_hub
from .storage.save import save_pretrained
from .training.parameter_groups import parameter_groups
from .training.penalty_schedule import PenaltySchedule

if REFT not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name="reft", config_cls=ReftConfig, model_cls=ReftModel, prefix="reft_")

__version__ = "0.1.0"

__all__ = [
    "Intervention",
    "MixedReftModel",
    "PenaltySchedule",
    "PositionWarning",
    "ReftConfig",
    "ReftModel",
    "convert",
    "drop_closed_heads",
    "export_prefix",
    "hotswap_adapter",
    "list_adapters",
    "parameter_groups",
    "prepare_for_hotswap",
    "prompt_cache",
    "pull",
    "push_to_hub",
    "register_intervention",
    "save_pretrained",
    "scale_adapter",
    "select_heads",
    "set_subspaces",
    "set_value",
]
