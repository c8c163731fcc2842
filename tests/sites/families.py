"""What each family's block adds to its residual stream, written down by hand from its modelling code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tools.architectures.tiny import tiny_model

LAYER = 1


@dataclass(frozen=True)
class Family:
    """One class of models.

    Attributes:
        attention, mlp: modules of a block whose output, times `factor`, is added; None where no module gives it.
        projection: the linear map whose input is the heads, concatenated.
        heads: how many.
        blocks: the list of blocks.
        layer: the block that is looked at.
        sums: whether input + attention + mlp = output; BERT's norms come between.
    """

    model: str
    attention: str | None = "self_attn"
    mlp: str | None = "mlp"
    projection: str | None = "self_attn.o_proj"
    factor: float = 1.0
    blocks: str = "model.layers"
    layer: int = LAYER
    heads: int = 4
    sums: bool = True
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.model, *map(str, self.fields.values())])

    def make(self) -> nn.Module:
        """The model, tiny and random."""
        return tiny_model(self.model, **self.fields)


_SANDWICH = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
_GPT2 = {"attention": "attn", "projection": "attn.c_proj", "blocks": "transformer.h"}
_BERT = {
    "attention": "attention.output.dense",
    "projection": "attention.output.dense",
    "mlp": "output.dense",
    "sums": False,
}
_BLOOM: dict[str, Any] = {
    "attention": "self_attention.dense",
    "mlp": "mlp.dense_4h_to_h",
    "projection": "self_attention.dense",
    "blocks": "transformer.h",
}
_FALCON: dict[str, Any] = {**_BLOOM, "attention": "self_attention", "mlp": "mlp"}

FAMILIES = [
    Family("LlamaForCausalLM"),
    Family("MistralForCausalLM"),
    Family("Qwen2ForCausalLM"),
    Family("Qwen3ForCausalLM"),
    Family("SmolLM3ForCausalLM"),
    Family("GemmaForCausalLM"),
    Family("Phi3ForCausalLM"),
    Family("PhiForCausalLM", projection="self_attn.dense"),
    Family("CohereForCausalLM"),
    Family("Cohere2ForCausalLM"),
    Family("StableLmForCausalLM", fields={"use_parallel_residual": True}),
    Family("MixtralForCausalLM"),
    Family("Qwen2MoeForCausalLM"),
    Family("Qwen3MoeForCausalLM"),
    Family("Glm4MoeForCausalLM"),
    Family("Ernie4_5_MoeForCausalLM"),
    Family("HunYuanMoEV1ForCausalLM"),
    Family("OlmoeForCausalLM"),
    Family("GptOssForCausalLM"),
    Family("DeepseekV2ForCausalLM"),
    Family("DeepseekV3ForCausalLM"),
    Family("Lfm2MoeForCausalLM", projection="self_attn.out_proj", mlp="feed_forward"),
    Family("JambaForCausalLM", mlp="feed_forward"),
    Family("GraniteForCausalLM", factor=0.22, fields={"residual_multiplier": 0.22}),
    Family("GraniteMoeForCausalLM", factor=0.22, mlp="block_sparse_moe", fields={"residual_multiplier": 0.22}),
    Family("GraniteMoeSharedForCausalLM", factor=0.22, mlp=None, fields={"residual_multiplier": 0.22}),
    Family("Gemma2ForCausalLM", **_SANDWICH),
    Family("Gemma3ForCausalLM", **_SANDWICH),
    Family("Olmo2ForCausalLM", **_SANDWICH),
    Family("Olmo3ForCausalLM", **_SANDWICH),
    Family("Exaone4ForCausalLM", **_SANDWICH),
    Family("Glm4ForCausalLM", attention="post_self_attn_layernorm", mlp="post_mlp_layernorm"),
    Family("Qwen3VLMoeForConditionalGeneration", blocks="model.language_model.layers"),
    Family("GPT2LMHeadModel", **_GPT2),
    Family("GPTBigCodeForCausalLM", **_GPT2),
    Family("GPTJForCausalLM", **{**_GPT2, "projection": "attn.out_proj"}),
    Family("GPTNeoForCausalLM", attention="attn", projection="attn.attention.out_proj", blocks="transformer.h"),
    Family("GPTNeoXForCausalLM", attention="attention", projection="attention.dense", blocks="gpt_neox.layers"),
    Family("OPTForCausalLM", mlp="fc2", projection="self_attn.out_proj", blocks="model.decoder.layers"),
    Family("BloomForCausalLM", **_BLOOM),
    Family(
        "MptForCausalLM",
        attention="attn",
        mlp="ffn.down_proj",
        projection="attn.out_proj",
        blocks="transformer.blocks",
    ),
    Family("FalconForCausalLM", **_FALCON),
    Family("FalconForCausalLM", **_FALCON, fields={"new_decoder_architecture": True}),
    Family("FalconForCausalLM", **_FALCON, fields={"parallel_attn": False}),
    Family("MiniMaxForCausalLM", layer=0, sums=False),
    Family("MiniMaxForCausalLM", layer=1, projection="self_attn.out_proj", sums=False),
    *(
        Family(
            "MiniMaxForCausalLM",
            layer=layer,
            projection="self_attn.o_proj" if kind == "full" else "self_attn.out_proj",
            sums=False,
            factor=0.5,
            fields={
                f"{kind}_attn_beta_factor": 0.5,
                f"{kind}_attn_alpha_factor": 3.5,
                "mlp_beta_factor": 0.5,
                "mlp_alpha_factor": 3.5,
            },
        )
        for layer, kind in ((0, "full"), (1, "linear"))
    ),
    Family("BertForMaskedLM", **_BERT, blocks="bert.encoder.layer"),
    Family("RobertaForMaskedLM", **_BERT, blocks="roberta.encoder.layer"),
    Family("GteForMaskedLM", sums=False, blocks="gte.layers"),
    Family("NomicBertForMaskedLM", sums=False, blocks="nomic_bert.layers"),
    Family("JinaEmbeddingsV3ForMaskedLM", sums=False, blocks="roberta.layers"),
    Family("ModernBertForMaskedLM", attention="attn", projection="attn.Wo"),
]
