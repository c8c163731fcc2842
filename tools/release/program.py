"""A stranger's first program: train, save, load, and get the same. Run in an environment with the wheel alone.

It is copied to an empty folder and started there, so nothing of the checkout can be imported.
"""

from __future__ import annotations

import sys
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    """Do it.

    Returns:
        The exit status.
    """
    import torch
    from peft import PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    import peft_reft
    from peft_reft.hub_format import check_folder

    home = Path(peft_reft.__file__).parent
    if "site-packages" not in home.parts or (home / "hub_format/SPEC.md").stat().st_size < 1000:
        raise SystemExit(f"{home} is not what was installed")
    optional = [name for name in ("trl", "datasets", "matplotlib") if find_spec(name)]
    if optional:
        raise SystemExit(f"this environment is not bare: it has {', '.join(optional)}")

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=64)).save_pretrained("base")
    config = peft_reft.ReftConfig(task_type="CAUSAL_LM", r=2, positions="f1+l2")
    model = get_peft_model(LlamaForCausalLM.from_pretrained("base"), config)
    ids = torch.arange(4, 24).view(2, 10)
    labels = ids.clone()
    labels[:, :6] = -100
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise SystemExit(f"nothing was learnt: {losses}")
    model.eval().save_pretrained("adapter")
    check_folder(Path("adapter"))
    again = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained("base"), "adapter").eval()
    with torch.no_grad():
        same = torch.equal(again(input_ids=ids, labels=labels).logits, model(input_ids=ids, labels=labels).logits)
    if not same:
        raise SystemExit("the adapter that was loaded gives other logits")
    declared = len([each for each in requires("peft-reft") or [] if "extra ==" not in each])
    sys.stdout.write(
        f"peft-reft {peft_reft.__version__}: {declared} dependencies, loss {losses[0]:.3f} to {losses[-1]:.3f}\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
