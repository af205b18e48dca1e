"""The small endpoints: models, health, version, and the tokeniser for who wants to count."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aiohttp import web

from services.gateway.api.bodies.texts import DetokenizeBody, TokenizeBody
from services.gateway.api.chats import render
from services.gateway.api.intake import RequestIntake
from services.gateway.api.prepare import check_token_ids
from services.gateway.cluster.registry import Registry
from services.gateway.cluster.view import no_decode_worker
from services.gateway.model import ServedModel
from shared.errors import BadRequest
from shared.service.health import Health


class InfoRoutes:
    """Everything that needs no worker. Shapes are those of vLLM's server."""

    def __init__(self, model: ServedModel, registry: Registry, health: Health, intake: RequestIntake) -> None:
        self._model = model
        self._registry = registry
        self._health = health
        self._intake = intake

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/models", self.models),
            web.get("/v1/models/{name:.+}", self.one_model),
            web.get("/health", self.health),
            web.get("/version", self.version),
            web.post("/tokenize", self.tokenize),
            web.post("/detokenize", self.detokenize),
        ]

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model_object()]})

    async def one_model(self, request: web.Request) -> web.Response:
        self._model.check_name(request.match_info["name"])
        return web.json_response(self._model_object())

    async def health(self, _request: web.Request) -> web.Response:
        """200 only when a completion would be accepted now."""
        view = self._registry.view()
        reasons = [] if view.decode else [no_decode_worker(view)]
        if self._health.draining:
            reasons.append("this gateway is shutting down")
        kafka = self._health.conditions.get("kafka")
        if not view.decode and kafka is not None and not kafka.ok:
            reasons.append(f"kafka: {kafka.detail}")
        workers = {
            "decode": [member.worker for member in view.decode],
            "prefill": [member.worker for member in view.prefill],
            "cachepool": list(view.pools),
        }
        status = "unavailable" if reasons else "ok"
        body = {"status": status, "reasons": reasons, "workers": workers, "problems": list(view.problems)}
        return web.json_response(body, status=503 if reasons else 200)

    async def version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": suite_version()})

    async def tokenize(self, request: web.Request) -> web.Response:
        return web.json_response(await self._intake.body(request, TokenizeBody, self._tokenize))

    async def detokenize(self, request: web.Request) -> web.Response:
        return web.json_response(await self._intake.body(request, DetokenizeBody, self._detokenize))

    def _tokenize(self, body: TokenizeBody) -> dict[str, Any]:
        self._model.check_name(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise BadRequest("give either prompt or messages", param="prompt")
        if body.prompt is not None:
            text, add_special_tokens = body.prompt, body.add_special_tokens is not False
        else:
            text = render(self._model, body.messages or (), body.add_generation_prompt)
            add_special_tokens = bool(body.add_special_tokens)
        ids = self._model.tokenizer.encode(text, add_special_tokens)
        strings = None
        if body.return_token_strs:
            strings = [self._model.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
        return {"count": len(ids), "max_model_len": self._model.max_model_len, "tokens": ids, "token_strs": strings}

    def _detokenize(self, body: DetokenizeBody) -> dict[str, Any]:
        self._model.check_name(body.model)
        check_token_ids(body.tokens, self._model.vocab_size, "tokens")
        return {"prompt": self._model.tokenizer.decode(body.tokens, skip_special_tokens=False)}

    def _model_object(self) -> dict[str, Any]:
        return {
            "id": self._model.name,
            "object": "model",
            "created": self._model.created,
            "owned_by": "prfaas",
            "max_model_len": self._model.max_model_len,
        }


def suite_version() -> str:
    """Return the version that is installed."""
    try:
        return version("prfaas")
    except PackageNotFoundError:  # run from a checkout
        return "0+checkout"
