"""`Runtime`: what one model carries beside its weights: its stacks, its sites, the hooks that make a frame.

A pre-hook on the model, and on every module inside it that takes tokens and holds a stack, opens a frame unless one is
open: so an encoder that `generate` calls by itself, or a backbone that a trainer calls, gets its positions too. The
hook that closes the frame runs even if the forward raises; see `frames` for what it does not see.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_reft.adapters import Stacks, row_adapters
from peft_reft.hub_format.errors import PromptBoundaryError
from peft_reft.interventions import orthonormal_rows
from peft_reft.sites import Stack

from .activity import Activity, activity_of
from .adapters import AdapterView
from .caches import cache_of, mark_cache, past_length, unknown_length
from .checkpointing import FrameCarrier
from .compiling import beside_graphs
from .continuous import ContinuousBatching
from .frames import Frame, StackPlan, UnitKey, close_frame, current_frame, open_frame
from .generation import Session, check_session, current_session, generate_with_positions
from .inputs import Explicit, bind_call, call_inputs
from .records import record_of
from .requests import Batch
from .resolve import Situation, columns_of, slot_masks
from .sharding import execution_device, is_gathered_alone
from .trainer_refusals import cuts_rows, refuse_cut_rows
from .trainers import running_trainer, traced_for_trainer

__all__ = ["Runtime", "runtime_of"]

ATTRIBUTE = "_reft_runtime"


def runtime_of(model: nn.Module) -> Runtime | None:
    """The runtime that a model carries, or None."""
    return model.__dict__.get(ATTRIBUTE)


class Runtime:
    """Attached to the base model while it has ReFT adapters.

    Attributes:
        model: the base model.
        stacks: its stacks that are edited, by path.
        layers: site path → its `ReftLayer`.
        views: adapter name → its groups.
        has_completion: adapter name → whether its task has tokens after the prompt.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.stacks: dict[str, Stack] = {}
        self.layers: dict[str, Any] = {}
        self.views: dict[str, AdapterView] = {}
        self.has_completion: dict[str, bool] = {}
        self.unverified: dict[str, Any] = {}
        self.stacks_of_adapters = Stacks(self)
        self.handles: list[RemovableHandle] = []
        self.carriers: dict[str, FrameCarrier] = {}
        self.inputs: set[str] = set()
        self.changes_held = False
        self._activity: Activity | None = None
        self.entries: list[tuple[nn.Module, list[str]]] = []
        self._open_entry(model)
        setattr(model, ATTRIBUTE, self)
        if callable(getattr(type(model), "generate", None)):
            model.generate = self.generate  # type: ignore[assignment]
        self.batching = ContinuousBatching(self)
        self.batching.attach()

    def add_stack(self, stack: Stack) -> None:
        """Make a stack known, and the modules around it that take tokens entries for it."""
        if stack.path in self.stacks:
            return
        self.stacks[stack.path] = stack
        parts = stack.path.split(".")[:-1]
        for end in range(len(parts) + 1):
            module = self.model.get_submodule(".".join(parts[:end]))
            if module is self.model or "input_ids" in inspect.signature(module.forward).parameters:
                self._open_entry(module).append(stack.path)

    def add_layer(self, layer: Any, site: nn.Module) -> None:
        """Make a site known and hook its module."""
        self.layers[layer.path] = layer
        self.handles.append(site.register_forward_hook(layer.edit_output))
        inner = layer.path.removeprefix(f"{layer.stack}.").split(".")
        if len(inner) > 1 and (block := f"{layer.stack}.{inner[0]}") not in self.carriers:
            self.carriers[block] = FrameCarrier(self, self.model.get_submodule(block))

    def hook_input(self, layer: Any) -> None:
        """Let a site edit its module's input too; sites that edit outputs only are spared the hook."""
        if layer.path not in self.inputs:
            self.inputs.add(layer.path)
            site = self.model.get_submodule(layer.path)
            self.handles.append(site.register_forward_pre_hook(layer.edit_input, with_kwargs=True))

    def remove(self) -> None:
        """Take every hook and attribute off the model."""
        handles: list[RemovableHandle | FrameCarrier] = [*self.handles, *self.carriers.values()]
        for handle in handles:
            handle.remove()
        self.model.__dict__.pop(ATTRIBUTE, None)
        self.model.__dict__.pop("generate", None)
        self.batching.detach()

    def device_of(self, path: str) -> torch.device | None:
        """Device of a site's own parameters; of weights that accelerate keeps elsewhere, where they are brought to."""
        site = self.model.get_submodule(path)
        own = (p for name, p in site.named_parameters() if not name.startswith("reft."))
        device = next((parameter.device for parameter in own if not parameter.is_meta), None)
        return device if device is not None else execution_device(site)

    def activity(self) -> Activity:
        """What edits now: the running call's rows, or the active adapters."""
        rows = row_adapters(self)
        if rows is not None:
            if rows.activity is None:
                rows.activity = activity_of(self, rows.names)
            return rows.activity
        if self._activity is None:
            self._activity = activity_of(self)
        return self._activity

    def changed(self, layer: Any | None = None) -> None:
        """Work out anew what edits.

        PEFT and transformers change site after site: where `layer` is not the last, that waits for the others.
        """
        self._activity = None
        last = layer is None or layer is next(reversed(self.layers.values()), None)
        if last and not self.changes_held:
            self._activity = activity_of(self)

    def active(self, stack: str | None = None) -> list[str]:
        """Names of the adapters that edit some site, or some site of a stack, now."""
        stacks = self.activity().stacks
        chosen = list(stacks.values()) if stack is None else [stacks[stack]]
        return list(dict.fromkeys(view.name for one in chosen for view in one.views))

    def active_views(self) -> list[AdapterView]:
        """The adapters that edit some site now."""
        return [self.views[name] for name in self.active()]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own `generate`, inside a session that knows the prompt."""
        return generate_with_positions(self, *args, **kwargs)

    def rotations(self, frame: Frame) -> dict[tuple[str, UnitKey], Tensor]:
        """R of every active unit that has one, for all sites of a shape in one call; made once per frame.

        A generation runs many frames, some of one stack only: there it is made once, for all stacks. Sharded
        parameters are left out: their R is computed where the shards are gathered, in the unit's forward.
        """
        if frame.rotations is not None:
            return frame.rotations
        session = current_session(self)
        if (chosen := row_adapters(self)) is not None and chosen.stack is not None:
            return {}
        groups: dict[Any, list[tuple[tuple[str, UnitKey], Tensor]]] = {}
        for layer in self.layers.values():
            if session is None and frame.plans.get(layer.stack) is None:
                continue
            for one in layer.live():
                unit = one.module if torch.compiler.is_compiling() else layer.unit((one.name, one.key[1]))
                for name in unit.orthonormal:
                    raw = getattr(unit, name)
                    if not is_gathered_alone(self.model, layer.path, raw):
                        member = ((layer.path, one.key), unit.raw_rotation())
                        alike = (raw.shape, raw.dtype, raw.device, unit.capacity is not None)
                        groups.setdefault(alike, []).append(member)
        frame.rotations = {}
        for (*_, padded), members in groups.items():
            rows = orthonormal_rows(torch.stack([raw for _, raw in members]), padded=padded)
            frame.rotations.update(zip((where for where, _ in members), rows.unbind(0), strict=True))
        if session is not None:
            session.rotations = frame.rotations
        return frame.rotations

    def _open_entry(self, module: nn.Module) -> list[str]:
        for known, paths in self.entries:
            if known is module:
                return paths
        opened: list[str] = []
        self.entries.append((module, opened))
        self.handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
        self.handles.append(module.register_forward_hook(self._leave, with_kwargs=True, always_call=True))
        return opened

    @beside_graphs
    def _enter(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        explicit, kwargs = Explicit.take(kwargs)
        frame = current_frame(self)
        if frame is None:
            frame = self._new_frame(module, args, kwargs, explicit)
        open_frame(frame, module)
        return args, kwargs

    @beside_graphs
    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        frame = close_frame(self, module)
        if frame is not None and frame.counts_from_end:
            mark_cache(output)

    def _new_frame(self, module: nn.Module, args: Any, kwargs: dict[str, Any], explicit: Explicit) -> Frame:
        paths = next(paths for known, paths in self.entries if known is module)
        session = current_session(self)
        call = bind_call(module, args, kwargs)
        if session is not None:
            if session.is_decoding(call) and not self.activity().generates:
                return Frame(self, dict.fromkeys(paths))
            explicit = explicit or session.explicit
        self._verify()
        if session is None and any(self.activity().units):
            call = self._asked_of_trainer(call, explicit)
        batch = None if session is not None else self.batching.batch_of(call)
        if batch is not None and not explicit:
            return Frame(self, {path: self._paged_plan(self.stacks[path], batch) for path in paths})
        record = record_of(cache_of(call))
        if record is not None and (past_length(cache_of(call)) or 0) <= record.length:
            record.check_state(self)
        if session is None and not torch.compiler.is_compiling() and any(self.activity().units):
            check_session(self)
        plans = {path: self._plan(self.stacks[path], call, explicit, session) for path in paths}
        from_end = not explicit and (session is None or session.recording is None) and self.activity().from_end
        return Frame(self, plans, from_end, None if session is None else session.rotations)

    def _plan(
        self, stack: Stack, call: dict[str, Any], explicit: Explicit, session: Session | None
    ) -> StackPlan | None:
        active = self.activity().stacks[stack.path]
        seen = None if session is None else session.seen
        inputs = call_inputs(call, stack.role, seen=seen) if active.views else None
        if inputs is None:
            rows = row_adapters(self)
            if rows is not None and (unedited := call_inputs(call, stack.role, seen=seen)) is not None:
                rows.repeats(unedited.batch)  # a wrong number of names is refused also where none of them edits
            return None
        explicit.check_names(self.views, () if stack.role == "only" else ("encoder", "decoder"))
        views, generates = active.views, active.generates
        record = record_of(cache_of(call))
        fresh = record is not None and inputs.past <= record.length
        if record is not None and fresh:
            _check_told(session, explicit)
            inputs = replace(inputs, past_ids=record.ids_for(inputs.batch)[:, : inputs.past])
        one = inputs.length == 1 and inputs.cu_seq_lens is None
        if session is None and inputs.continues and one and not generates and not explicit:
            return None  # a single token on top of a cache is a generated one
        if not inputs.past_known:
            raise unknown_length()
        situation = Situation(
            role=stack.role,
            has_completion=active.has_completion,
            trains_with_labels=self.model.training and self._takes_labels(),
            encoder_edited=any(
                other.role == "encoder" and self.activity().stacks[other.path].views for other in self.stacks.values()
            ),
            explicit=explicit,
        )
        if session is not None and stack.role != "encoder":
            situation = session.situation(inputs, situation)
            if inputs.past >= (situation.prompt_width or 0) and not generates and not fresh:
                return None
        masks = slot_masks(inputs, views, situation)
        if record is not None and fresh:
            record.check(stack.path, masks, inputs.past)
        if session is not None and session.recording is not None:
            session.recording[stack.path] = {key: found.mask[:, : inputs.length] for key, found in masks.items()}
        chosen = columns_of(masks, inputs)
        rows = row_adapters(self)
        if rows is not None:
            chosen = {
                (place, unit): replace(
                    found, mask=found.mask & rows.selects(views[place].name, inputs.batch, inputs.device)
                )
                for (place, unit), found in chosen.items()
            }
        stacked = rows is not None and rows.stack is not None
        return StackPlan(inputs.batch, inputs.length, chosen, inputs.past, row_by_row=rows is not None, whole=stacked)

    def _asked_of_trainer(self, call: dict[str, Any], explicit: Explicit) -> dict[str, Any]:
        """A forward's arguments by name, with the labels of its batch where a trainer left them out.

        Raises:
            ConfigError: the trainer cuts documents anywhere.
        """
        if not torch.compiler.is_compiling():
            return self._asked(call, explicit)
        if traced_for_trainer(bool(explicit) or call.get("labels") is not None):
            found: dict[str, Any] = self._asked_between_graphs(call, explicit)
            return found
        return call

    def _asked(self, call: dict[str, Any], explicit: Explicit) -> dict[str, Any]:
        running = running_trainer()
        if running is None:
            return call
        if explicit.locations is None and cuts_rows(running.settings) and running.trains(self.model):
            specs = [(view.name, group.positions) for view in self.active_views() for group in view.groups]
            refuse_cut_rows(running.settings, specs)
        if explicit or call.get("labels") is not None or (labels := running.labels_of(call)) is None:
            return call
        return {**call, "labels": labels}

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch's decorator has no type
    def _asked_between_graphs(self, call: dict[str, Any], explicit: Explicit) -> dict[str, Any]:
        return self._asked(call, explicit)

    def _paged_plan(self, stack: Stack, batch: Batch) -> StackPlan | None:
        views = self.activity().stacks[stack.path].views
        return batch.plan(views, Situation(role=stack.role)) if views else None

    def _takes_labels(self) -> bool:
        return "labels" in inspect.signature(self.model.forward).parameters

    def _verify(self) -> None:
        """Check digests that a load path gave no earlier chance to check."""
        if self.unverified:
            from peft_reft.loading import verify_loaded

            verify_loaded(self)


def _check_told(session: Session | None, explicit: Explicit) -> None:
    """Refuse a prompt cache in a forward that cannot tell where its prompt ends."""
    if session is None and not explicit:
        raise PromptBoundaryError(
            "a forward continues a prompt cache, and nothing says where the prompt ends",
            code="positions.continuation",
            rule="a prompt cache holds the head of a longer prompt",
            fix="use generate, or pass prompt_lengths or a prompt_mask over the cached and the new columns",
        )
