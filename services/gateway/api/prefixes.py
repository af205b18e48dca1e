"""`/v1/prefixes`: compute a prompt's KV ahead of its requests and keep it in the pools for a time."""

import asyncio
from contextlib import aclosing
from functools import partial
from typing import Any

from aiohttp import web

from services.gateway.api.access import Asker, asker_of
from services.gateway.api.bodies.chat import ChatBody
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.bodies.texts import PrefixBody
from services.gateway.api.intake import RequestIntake
from services.gateway.api.prepare import prepare_chat, prepare_completion
from services.gateway.cluster.pins import Prefix, Prefixes
from services.gateway.model import ServedModel
from services.gateway.request.generation import GenerationRequest
from services.gateway.request.pipeline import Pipeline
from services.gateway.request.usage import PromptUsage
from services.gateway.settings import GatewaySettings
from shared.deadline import Deadline
from shared.errors import BadRequest, NotFound


class PrefixRoutes:
    """Keys come from what any request with this beginning would make of it: same tokens, template and salt."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: ServedModel,
        prefixes: Prefixes,
        settings: GatewaySettings,
        intake: RequestIntake,
    ) -> None:
        self._pipeline = pipeline
        self._model = model
        self._prefixes = prefixes
        self._settings = settings
        self._intake = intake

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/prefixes", self.create),
            web.get("/v1/prefixes", self.all),
            web.delete("/v1/prefixes/{id}", self.delete),
        ]

    async def create(self, request: web.Request) -> web.Response:
        """Pin first, so that nothing pushes out what is computed next; a failure leaves nothing pinned."""
        deadline, asker = Deadline.after(self._settings.request_timeout_s), asker_of(request)
        with asker.admitted(), self._intake.admitted():
            async with deadline.scope("the prefix was being computed"):
                body, prompt = await self._intake.body(request, PrefixBody, partial(self._prepared, asker))
                num_tokens, name = len(prompt.token_ids), body.name or ""
                prefix = await self._prefixes.keep(prompt.keys, num_tokens, prompt.tenant, body.ttl_s, name)
                usage = PromptUsage(num_tokens)
                try:
                    await self._compute(prompt, usage, deadline)
                except BaseException:
                    await asyncio.shield(self._prefixes.drop(prefix.id))
                    raise
        return web.json_response({**self._object(prefix), "cached_tokens": usage.cached_tokens})

    async def all(self, request: web.Request) -> web.Response:
        data = [self._object(prefix) for prefix in self._prefixes.current() if _is_seen(prefix, asker_of(request))]
        return web.json_response({"object": "list", "data": data})

    async def delete(self, request: web.Request) -> web.Response:
        prefix_id, asker = request.match_info["id"], asker_of(request)
        if not any(prefix.id == prefix_id and _is_seen(prefix, asker) for prefix in self._prefixes.current()):
            raise NotFound(f"there is no prefix {prefix_id!r} here")
        await self._prefixes.drop(prefix_id)
        return web.json_response({"id": prefix_id, "object": "prefix", "deleted": True})

    def _prepared(self, asker: Asker, body: PrefixBody) -> tuple[PrefixBody, GenerationRequest]:
        """Return the request that computes the prefix: all of it, and one token."""
        asker.seal(body)
        if (body.prompt is None) == (body.messages is None):
            raise BadRequest("give either prompt or messages", param="prompt")
        model = self._model
        shared: dict[str, Any] = body.model_dump(include={"model", "cache_salt", "add_special_tokens"})
        shared |= {"max_tokens": 1, "temperature": 0.0}
        if body.messages is not None:
            chat = ChatBody(messages=body.messages, add_generation_prompt=bool(body.add_generation_prompt), **shared)
            prepared = prepare_chat(model, chat)
        else:
            prepared = prepare_completion(model, CompletionBody(prompt=body.prompt or "", **shared))
        request = asker.charged(prepared, None).requests[0]
        if not request.keys:
            least = model.layout.block_tokens
            raise BadRequest(
                f"a prefix needs at least {least} tokens, this has {len(request.token_ids)}: only full blocks are kept",
                param="prompt" if body.messages is None else "messages",
            )
        return body, request

    async def _compute(self, request: GenerationRequest, usage: PromptUsage, deadline: Deadline) -> None:
        """An ordinary request leaves the blocks in the home pools, whoever computes them."""
        async with aclosing(self._pipeline.generate(request, usage, deadline)) as events:
            async for _event in events:
                pass

    def _object(self, prefix: Prefix) -> dict[str, Any]:
        block_tokens = self._model.layout.block_tokens
        return {
            "id": prefix.id,
            "object": "prefix",
            "name": prefix.name or None,
            "created": int(prefix.created_at),
            "expires_at": int(prefix.ends_at),
            "num_tokens": prefix.num_tokens,
            "kept_tokens": len(prefix.keys) * block_tokens,
        }


def _is_seen(prefix: Prefix, asker: Asker) -> bool:
    """Check whether somebody may know of a prefix: those of other tenants are nobody's business."""
    return asker.tenant is None or prefix.tenant == asker.tenant
