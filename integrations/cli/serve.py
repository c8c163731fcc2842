"""`peft-reft serve`: an OpenAI-compatible server, vLLM's or transformers', with ReFT adapters as models."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal

import typer

from peft_reft.hub_format.bundle import check_name
from peft_reft.hub_format.errors import ConfigError
from peft_reft.integrations.vllm.settings import DEFAULT_RANK, DEFAULT_SLOTS, WORKER, Settings

__all__ = ["PASSED_ON", "serve"]

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""How typer leaves vLLM's arguments alone."""
PLUGIN = "peft_reft"
OURS = ("--worker-cls", "--grpc", "--headless")
ONE_SERVER = "--api-server-count"
OF_VLLM = ("max_refts", "max_reft_rank", "allow_runtime_loading")
"""Options that have a meaning on vLLM alone."""


def serve(
    context: typer.Context,
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model: a folder or repository.")],
    adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH|REPO", help="An adapter to serve; may stand several times.")
    ] = None,
    engine: Annotated[Literal["vllm", "transformers"], typer.Option(help="Whose server it is.")] = "vllm",
    max_refts: Annotated[int, typer.Option(help="Units of adapters on the device at once.")] = DEFAULT_SLOTS,
    max_reft_rank: Annotated[int, typer.Option(help="The largest rank of an affine edit.")] = DEFAULT_RANK,
    allow_runtime_loading: Annotated[
        bool, typer.Option("--allow-runtime-loading", help="Let clients load and unload adapters.")
    ] = False,
) -> int:
    """Serve adapters on a base; every further argument is one of `vllm serve`, or of `transformers serve`."""
    adapters = dict(_named(adapter or []))
    given = list(context.args)
    if engine == "transformers":
        return _transformers(context, base, given, adapters)
    for option in given:
        name, _, value = option.partition("=")
        if name in OURS or (name == ONE_SERVER and _value(given, option, value) != "1"):
            raise ConfigError(
                f"{name} with ReFT adapters",
                code="vllm.engine",
                value=option,
                rule="adapters are admitted by one server in one process, and edited by workers of our own",
                fix=f"leave {name} out",
            )
    extra, given = _additional(given)
    settings = Settings(max_refts, max_reft_rank)
    return _run(base, given, settings.beside(extra), adapters, allow_runtime_loading=allow_runtime_loading)


def _transformers(context: typer.Context, base: str, given: Sequence[str], adapters: dict[str, str]) -> int:
    from peft_reft.integrations.transformers_serve import serve_with

    for option in OF_VLLM:
        source = context.get_parameter_source(option)
        if source is not None and source.name != "DEFAULT":
            name = f"--{option.replace('_', '-')}"
            raise ConfigError(
                f"{name} with --engine transformers",
                code="serve.engine",
                value=name,
                rule="it is an option of the engine vllm; here all adapters are loaded at the start and stay",
                fix=f"leave {name} out",
            )
    serve_with(base, adapters, given)
    return 0


def _run(
    base: str, given: Sequence[str], extra: dict[str, Any], adapters: dict[str, str], *, allow_runtime_loading: bool
) -> int:
    from peft_reft.integrations.vllm.serving import VARIABLE, ServeOptions

    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ["VLLM_PLUGINS"] = ",".join(_plugins())
    os.environ[VARIABLE] = ServeOptions(adapters, allow_runtime_loading).write()
    ours = ("--worker-cls", WORKER, "--additional-config", json.dumps(extra))
    _vllm_serve([base, *given, *ours])
    return 0


def _vllm_serve(arguments: Sequence[str]) -> None:
    """`vllm serve`, by its own parser; its program asks for a package of the name vllm, which CPU builds have not."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    command = ServeSubcommand()
    parser = FlexibleArgumentParser(prog="peft-reft")
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    sys.argv = ["vllm", command.name, *arguments]  # vLLM looks there for what was given
    chosen = parser.parse_args([command.name, *arguments])
    configure_logging_from_args(chosen)
    command.validate(chosen)
    command.cmd(chosen)


def _named(adapters: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, source) of each `NAME=PATH`."""
    seen: set[str] = set()
    for text in adapters:
        name, equals, source = text.partition("=")
        if not equals or not source:
            raise ConfigError(f"--adapter {text[:80]!r}", value=text, rule="it is NAME=PATH or NAME=REPO")
        check_name(name)
        if name in seen:
            raise ConfigError(f"--adapter {name}=… stands twice", code="name", value=name)
        seen.add(name)
        yield name, source


def _plugins() -> list[str]:
    """The plugins that vLLM would have loaded, and ours: a list of them is the only way to ask for routes.

    Raises:
        ConfigError: ours is not installed.
    """
    if PLUGIN not in entry_points(group="vllm.endpoint_plugins").names:
        raise ConfigError(
            "vLLM does not find the plugin of peft-reft",
            code="vllm.plugin",
            rule="its entry point is part of the installed package",
            fix="install peft-reft again",
        )
    chosen = os.environ.get("VLLM_PLUGINS")
    names = set(entry_points(group="vllm.general_plugins").names) if chosen is None else set(chosen.split(","))
    return sorted({*names, PLUGIN} - {""})


def _additional(given: Sequence[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """What the user gives as vLLM's `--additional-config`, and the other arguments."""
    rest, found, arguments = list[str](), None, iter(given)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name != "--additional-config":
            rest.append(argument)
            continue
        found = value if equals else next(arguments, "")
    try:
        return (None if found is None else json.loads(found)), rest
    except json.JSONDecodeError as error:
        raise ConfigError(f"--additional-config {found!r}", value=found, rule="it is JSON") from error


def _value(given: Sequence[str], option: str, value: str) -> str:
    after = given.index(option) + 1
    return value or (given[after] if after < len(given) else "")
