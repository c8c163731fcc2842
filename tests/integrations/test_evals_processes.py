"""Generated answers in two processes are those of one: each row once, though the last batch was filled up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SCRIPT = """
import json, os, sys
from pathlib import Path
from integrations.tiny_sft import PAIRS, pairs, trainer_for
from peft_reft.integrations import GenerationMetric

folder, layout, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
rows = [*PAIRS, {"prompt": "what is grey ?", "completion": " stone"}]

def metric(predictions, references):
    place = folder / f"answers-{os.environ.get('RANK', 'alone')}.json"
    place.write_text(json.dumps(sorted(zip(references, predictions))))
    return {"rows": float(len(predictions))}

given = {"eval_dataset": pairs(rows), "callbacks": [GenerationMetric(metric, max_new_tokens=5)]}
fields = {"padding_free": layout == "padding_free", "per_device_eval_batch_size": size}
trainer_for(folder, given=given, **fields).evaluate()
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["padded", "padding_free"])
def test_two_processes_answer_as_one(tmp_path: Path, layout: str) -> None:
    script = tmp_path / "evaluate.py"
    script.write_text(SCRIPT, "utf-8")
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for how, size in (([], "5"), (several, "2")):
        command = [sys.executable, *how, str(script), str(tmp_path), layout, size]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    alone, first, second = (json.loads((tmp_path / f"answers-{who}.json").read_text()) for who in ("alone", "0", "1"))
    assert len(alone) == 5
    assert first == second == alone
