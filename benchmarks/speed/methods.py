"""The methods, each by its own library's public calls: attach, forward, generate, a further adapter, save, load."""

from __future__ import annotations

from typing import Any, Protocol

from benchmarks.speed.cases import EDGE, Case

__all__ = ["ENVIRONMENTS", "FIRST", "METHODS", "Method"]

FIRST = "first"


class Method(Protocol):
    """`inputs` are input_ids and attention_mask, [batch, tokens], without padding."""

    several: bool
    """Whether a model can have more than one adapter."""

    def attach(self, base: Any, case: Case) -> Any:
        """The base with a fresh adapter, random weights, ready for use; trainable."""

    def further(self, model: Any, case: Case, name: str) -> Any:
        """One adapter more, not active; gives what must be kept alive for it."""

    def forward(self, model: Any, inputs: dict[str, Any], labels: Any = None) -> Any:
        """The output of the model, with its `loss` where labels are given."""

    def generate(self, model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
        """Ids with the new tokens."""

    def train(self, model: Any, on: bool) -> None:
        """Training or evaluation mode."""

    def trainable(self, model: Any) -> list[Any]:
        """What an optimiser is given."""

    def save(self, model: Any, folder: str) -> None:
        """The adapter alone."""

    def load(self, base: Any, folder: str) -> Any:
        """The base with the saved adapter."""


class _Plain:
    """What a model that is called like its base needs."""

    several = True

    def forward(self, model: Any, inputs: dict[str, Any], labels: Any = None) -> Any:
        return model(**inputs, labels=labels)

    def generate(self, model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
        return model.generate(**inputs, **settings)

    def train(self, model: Any, on: bool) -> None:
        model.train(on)

    def trainable(self, model: Any) -> list[Any]:
        return [parameter for parameter in model.parameters() if parameter.requires_grad]


class _Peft(_Plain):
    def __init__(self, lora: bool) -> None:
        self.lora = lora

    def config(self, case: Case) -> Any:
        if self.lora:
            from peft import LoraConfig

            # not the identity of a fresh LoRA, though PEFT computes the same either way
            return LoraConfig(
                task_type="CAUSAL_LM", r=case.lora_rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False
            )
        from peft_reft import ReftConfig

        return ReftConfig(
            task_type="CAUSAL_LM", r=case.rank, positions=f"f{case.edge}+l{case.edge}", init_weights=False
        )

    def attach(self, base: Any, case: Case) -> Any:
        from peft import get_peft_model

        return get_peft_model(base, self.config(case), adapter_name=FIRST)

    def further(self, model: Any, case: Case, name: str) -> Any:
        model.add_adapter(name, self.config(case))

    def save(self, model: Any, folder: str) -> None:
        model.save_pretrained(folder)

    def load(self, base: Any, folder: str) -> Any:
        import pathlib

        from peft import PeftModel

        if not self.lora:
            import peft_reft  # noqa: F401  registers the method

        # PEFT gives an adapter that is not called default a folder of its own
        return PeftModel.from_pretrained(base, str(pathlib.Path(folder, FIRST)), is_trainable=True)


class _Pyreft:
    """pyreft has one adapter a model: a further one is a second model over the same base."""

    several = False

    def attach(self, base: Any, case: Case) -> Any:
        import pyreft

        if case.edge != EDGE:
            raise RuntimeError(f"edge={case.edge}: its locations are made for {EDGE} tokens at each end")
        sites = [
            {
                "layer": layer,
                "component": "block_output",
                "low_rank_dimension": case.rank,
                "intervention": pyreft.LoreftIntervention(
                    embed_dim=case.shape.hidden, low_rank_dimension=case.rank, dtype=base.dtype
                ),
            }
            for layer in range(case.shape.layers)
        ]
        return pyreft.get_reft_model(base, pyreft.ReftConfig(representations=sites))

    def further(self, model: Any, case: Case, name: str) -> Any:
        return self.attach(model.model, case)

    def forward(self, model: Any, inputs: dict[str, Any], labels: Any = None) -> Any:
        return model(inputs, unit_locations=self._locations(model, inputs), labels=labels)[1]

    def generate(self, model: Any, inputs: dict[str, Any], **settings: Any) -> Any:
        told = {"unit_locations": self._locations(model, inputs), "intervene_on_prompt": True}
        return model.generate(inputs, **told, **settings)[1]

    def train(self, model: Any, on: bool) -> None:
        model.model.train(on)
        for intervention in model.interventions.values():
            intervention.train(on)

    def trainable(self, model: Any) -> list[Any]:
        return [parameter for one in model.interventions.values() for parameter in one.parameters()]

    def save(self, model: Any, folder: str) -> None:
        model.save(folder)

    def load(self, base: Any, folder: str) -> Any:
        import pyreft

        model = pyreft.ReftModel.load(folder, base)
        model.set_device(base.device)
        model.disable_model_gradients()
        for intervention in model.interventions.values():
            # its loader always makes this in bf16, and it then runs on no other base
            intervention.learned_source.to(base.dtype)
        return model

    @staticmethod
    def _locations(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """As its trainer makes them of a batch: [interventions][batch][positions], lists."""
        batch, tokens = inputs["input_ids"].shape
        positions = [*range(EDGE), *range(tokens - EDGE, tokens)]
        return {"sources->base": (None, [[positions] * batch for _ in model.interventions])}


class _Adapters(_Plain):
    def attach(self, base: Any, case: Case) -> Any:
        import adapters

        adapters.init(base)
        self.further(base, case, FIRST)
        base.train_adapter(FIRST)
        return base

    def further(self, model: Any, case: Case, name: str) -> Any:
        import adapters

        model.add_adapter(
            name,
            config=adapters.LoReftConfig(
                r=case.rank, prefix_positions=case.edge, suffix_positions=case.edge, tied_weights=True, dropout=0.0
            ),
        )
        model.adapter_to(name, device=model.device)

    def save(self, model: Any, folder: str) -> None:
        model.save_adapter(folder, FIRST)

    def load(self, base: Any, folder: str) -> Any:
        import adapters

        adapters.init(base)
        base.load_adapter(folder, set_active=True)
        base.train_adapter(FIRST)
        return base


METHODS: dict[str, Method] = {
    "ours": _Peft(lora=False),
    "lora": _Peft(lora=True),
    "pyreft": _Pyreft(),
    "adapters": _Adapters(),
}
ENVIRONMENTS = {"ours": "own", "lora": "own", "pyreft": "pyreft", "adapters": "adapters"}
"""Method → the environment whose process runs it; `own` is the one that the command runs in."""
