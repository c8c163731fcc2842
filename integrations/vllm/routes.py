"""`POST /v1/load_reft_adapter` and `/v1/unload_reft_adapter`: only where the server was started to allow them."""

from __future__ import annotations

from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from peft_reft.hub_format.errors import ReftError

__all__ = ["attach"]


class LoadRequest(BaseModel):
    """Body of a load: the name, a folder or repository, its revision, whether one of that name gives way."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    reft_name: str
    reft_path: str
    revision: str | None = None
    replace: bool = False


class UnloadRequest(BaseModel):
    """Body of an unload."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    reft_name: str


def attach(app: FastAPI) -> None:
    """Register the routes; vLLM's own key check stands before everything under `/v1`."""
    app.post("/v1/load_reft_adapter")(load)
    app.post("/v1/unload_reft_adapter")(unload)


async def load(body: LoadRequest, request: Request) -> Any:
    """Serve one more adapter."""
    try:
        await request.app.state.reft.load(body.reft_name, body.reft_path, revision=body.revision, replace=body.replace)
    except (ReftError, OSError) as error:
        return _refused(error)
    return {"status": "loaded", "id": body.reft_name}


async def unload(body: UnloadRequest, request: Request) -> Any:
    """Serve an adapter no more."""
    try:
        await request.app.state.reft.unload(body.reft_name)
    except ReftError as error:
        return _refused(error)
    return {"status": "unloaded", "id": body.reft_name}


def _refused(error: Exception) -> JSONResponse:
    """A refusal in the form of the API's errors."""
    status = 404 if getattr(error, "code", None) == "vllm.unknown" else 400
    kind = "NotFoundError" if status == 404 else "BadRequestError"
    return JSONResponse({"error": {"message": str(error), "type": kind, "code": status}}, status_code=status)
