"""vLLM's worker of this machine, with ReFT: layers that edit, and methods by which the front loads adapters.

Named in `worker_cls`, so that layers are taught before vLLM compiles or profiles the model; hooks that come after are
silently ignored by a compiled one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform

from peft_reft.hub_format.errors import ConfigError, ReftError

from .blocks import OPERATORS, edit_blocks
from .editor import Editor
from .engine import check_engine
from .pool import Pool
from .settings import Settings

__all__ = ["ReftWorker"]


def _base() -> Any:
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        return CPUWorker
    if current_platform.is_cuda_alike():
        from vllm.v1.worker.gpu_worker import Worker

        return Worker
    raise ConfigError(
        f"ReFT on vLLM's platform {current_platform.device_type!r}",
        code="vllm.platform",
        value=current_platform.device_type,
        rule="workers of CPUs, CUDA and ROCm are known",
    )


if TYPE_CHECKING:
    from vllm.v1.worker.worker_base import WorkerBase as _Worker
else:
    _Worker = _base()


class ReftWorker(_Worker):  # type: ignore[misc]  # vLLM's types are not followed
    """A worker of vLLM that edits."""

    reft: Editor | None = None

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, and teach its layers before anything runs or compiles them.

        Raises:
            ConfigError, SiteError: a setting or an architecture under which edits are not known to be right.
        """
        settings = Settings.of(self.vllm_config)
        check_engine(self.vllm_config)
        super().load_model(**kwargs)
        runner = self.model_runner
        layers = edit_blocks(runner.get_model())
        _split_graphs(self.vllm_config.compilation_config)
        pool = Pool(
            layers=layers,
            slots=settings.max_refts,
            rank=settings.max_reft_rank,
            hidden_size=self.model_config.get_hidden_size(),
            device=self.device,
        )
        self.reft = editor = Editor(layers, pool)
        runner._model_forward = partial(_forward, editor, runner, runner._model_forward)
        dispatcher = runner.cudagraph_dispatcher
        dispatcher.dispatch = partial(_dispatch, editor, dispatcher.dispatch)

    def execute_model(self, scheduler_output: Any) -> Any:
        """One step; what it edits is worked out before the runner looks for a graph to replay."""
        if self.reft is not None:
            self.reft.begin(scheduler_output)
        return super().execute_model(scheduler_output)

    def reft_load(self, key: str, folder: str) -> str | None:
        """Load an adapter; returns the refusal, since an exception here would not reach the front as what it is."""
        try:
            self._editor().load(key, folder)
        except (ReftError, OSError) as error:
            return str(error)
        return None

    def reft_drop(self, key: str) -> None:
        """Forget an adapter that no request names any more."""
        self._editor().drop(key)

    def reft_report(self) -> dict[str, int]:
        """See `Editor.report`."""
        return self._editor().report()

    def _editor(self) -> Editor:
        if self.reft is None:
            raise ConfigError("the worker has loaded no model", code="vllm.worker")
        return self.reft


def _forward(editor: Editor, runner: Any, forward: Any, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
    """The runner's own forward of a step, its layers editing the rows of that step."""
    batch = runner.input_batch
    ids = runner.input_ids.gpu if input_ids is None else input_ids
    count = batch.num_reqs
    lengths = runner.query_start_loc.np[: count + 1]
    with editor.forward(batch.req_ids[:count], (lengths[1:] - lengths[:-1]).tolist(), ids):
        return forward(input_ids, *args, **kwargs)


def _dispatch(editor: Editor, dispatch: Any, *args: Any, invalid_modes: Any = None, **kwargs: Any) -> Any:
    """Which graph a step replays; not one of the whole forward where a row may be edited, since it holds no edit."""
    if editor.parts:
        from vllm.config import CUDAGraphMode

        invalid_modes = {*(invalid_modes or ()), CUDAGraphMode.FULL}
    return dispatch(*args, invalid_modes=invalid_modes, **kwargs)


def _split_graphs(compilation: Any) -> None:
    """Let vLLM cut its piecewise graphs at the operators, as it does at attention: what they do is never captured."""
    if compilation.splitting_ops:
        compilation.splitting_ops += [name for name in OPERATORS if name not in compilation.splitting_ops]
