"""The HTTP API: OpenAI's endpoints over the pipeline, streaming and not."""

import json
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from aiohttp import web

from services.gateway.admission.slo import default_slo, slo_of
from services.gateway.api.access import asker_of
from services.gateway.api.bodies.chat import ChatBody
from services.gateway.api.bodies.completion import CompletionBody
from services.gateway.api.bodies.responses import ResponsesBody
from services.gateway.api.bodies.sampling import Sampling
from services.gateway.api.bodies.structured import of_field
from services.gateway.api.intake import RequestIntake
from services.gateway.api.middleware import note_answered, request_id_of
from services.gateway.api.prepare import prepare_chat, prepare_completion, prepare_response
from services.gateway.api.replies.chat import ChatReply
from services.gateway.api.replies.completion import CompletionReply
from services.gateway.api.replies.logprobs import PromptLogprobs
from services.gateway.api.replies.reply import Reply
from services.gateway.api.replies.response import ResponseReply
from services.gateway.api.sse import EventStream
from services.gateway.api.traced import asked
from services.gateway.api.whole import num_told, shown_choices, spelt
from services.gateway.metrics import GatewayMetrics
from services.gateway.model import ServedModel
from services.gateway.request.choices import Choices
from services.gateway.request.generation import Prepared
from services.gateway.request.pipeline import Pipeline
from services.gateway.request.text import ChoiceDelta
from services.gateway.settings import GatewaySettings
from services.gateway.syntax.answers import AnswerSyntax
from services.gateway.timeline.timelines import Timelines
from shared.deadline import Deadline
from shared.errors import BadRequest, Internal, PrfaasError
from shared.ids import RequestId
from shared.log import get_logger
from shared.model.grammar.grammars import Grammars
from shared.telemetry.spans import current_span

log = get_logger()

B = TypeVar("B", bound=Sampling)


class GenerationRoutes:
    """`/v1/completions`, `/v1/chat/completions` and `/v1/responses`."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: ServedModel,
        metrics: GatewayMetrics,
        settings: GatewaySettings,
        intake: RequestIntake,
        grammars: Grammars,
        timelines: Timelines,
        syntax: AnswerSyntax,
    ) -> None:
        self._pipeline = pipeline
        self._model = model
        self._metrics = metrics
        self._settings = settings
        self._default_slo = default_slo(settings)
        self._intake = intake
        self._grammars = grammars
        self._timelines = timelines
        self._syntax = syntax

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/completions", self.completions),
            web.post("/v1/chat/completions", self.chat_completions),
            web.post("/v1/responses", self.responses),
        ]

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, CompletionBody, prepare_completion, CompletionReply)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, ChatBody, partial(prepare_chat, syntax=self._syntax), ChatReply)

    async def responses(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, ResponsesBody, partial(prepare_response, syntax=self._syntax), ResponseReply)

    async def _serve(
        self,
        request: web.Request,
        schema: type[B],
        prepare: Callable[[ServedModel, B], Prepared],
        shape: type[Reply],
    ) -> web.StreamResponse:
        """Run one request under its deadline. A failure becomes a status, or an event once one is out."""
        deadline = Deadline.after(self._settings.request_timeout_s)
        slo, asker = slo_of(request.headers, self._default_slo), asker_of(request)
        stream = EventStream(request, names_events=shape.names_events)
        model = self._model

        def answered() -> None:
            timeline.answered()
            note_answered(request)

        def work(body: B) -> tuple[B, Prepared]:
            timeline.body_read()
            asker.seal(body)
            prepared = asker.charged(prepare(model, body).asking(slo), body.priority)
            num_prompt_tokens, num_choices = prepared.num_prompt_tokens, len(prepared.requests)
            timeline.prepared(num_prompt_tokens, num_choices, is_streamed=bool(body.stream))
            return body, prepared

        with (
            asker.admitted(),
            self._intake.admitted(),
            self._timelines.follow(request_id_of(request), shape.kind) as timeline,
        ):
            try:
                async with deadline.scope("the request was being served"):
                    body, prepared = await self._intake.body(request, schema, work)
                    current_span().set(asked(model.name, prepared))
                    await self._check_constraint(body, prepared)
                    reply = self._reply(shape, request_id_of(request), body, prepared)
                    async with Choices(
                        self._pipeline, model.tokenizer, self._metrics, prepared, deadline, timeline.choice
                    ) as choices:
                        try:
                            if body.stream:
                                await _stream(stream, choices, reply, len(prepared.requests), body.continuous_usage)
                                answered()
                                return await stream.finish()
                            return await _whole(choices, reply, prepared)
                        finally:
                            timeline.used(choices.usage.completion_tokens, choices.usage.cached_tokens)
                            asker.spent(choices.usage.completion_tokens)
            except PrfaasError as error:
                if not stream.is_open:
                    raise
                log.warning("stream_failed", code=error.code, error=str(error))
                timeline.failed(error.code)
                self._metrics.request_failed(error.code)
                return await stream.fail(error)
            except ConnectionError:
                raise
            except Exception:
                if not stream.is_open:
                    raise
                log.exception("stream_crashed")
                timeline.failed(Internal.code)
                self._metrics.request_failed(Internal.code)
                return await stream.fail(Internal("the server failed to handle this request"))

    def _reply(self, shape: type[Reply], request_id: RequestId, body: Sampling, prepared: Prepared) -> Reply:
        """Return what shapes the answer."""
        tokenizer, num_of_prompt = self._model.tokenizer, body.prompt_logprobs
        reply = shape(
            request_id,
            self._model.name,
            include_usage=body.include_usage,
            with_token_ids=bool(body.return_token_ids),
            tokenizer=None if body.num_logprobs is None else tokenizer,
            of_prompts=None if num_of_prompt is None else PromptLogprobs(tokenizer, num_of_prompt),
            form=prepared.form,
        )
        reply.repeats(body)
        return reply

    async def _check_constraint(self, body: Sampling, prepared: Prepared) -> None:
        """Compile what the answer has to be before anybody generates. Raises `BadRequest` naming the field."""
        constraint = prepared.requests[0].sampling.constraint
        if constraint is not None:
            try:
                await self._grammars.check(constraint)
            except BadRequest as error:
                raise of_field(error, prepared.constraint_field or body.constraint_field) from None


async def _whole(choices: Choices, reply: Reply, prepared: Prepared) -> web.Response:
    parts: list[list[ChoiceDelta]] = [[] for _ in prepared.requests]
    async for deltas in choices:
        for delta in deltas:
            parts[delta.choice].append(delta)
    shown = shown_choices(parts, choices.scored_prompts, prepared)
    usage = choices.usage
    return web.json_response(text=await spelt(num_told(shown), lambda: json.dumps(reply.whole(shown, usage))))


async def _stream(stream: EventStream, choices: Choices, reply: Reply, num_choices: int, tells_usage: bool) -> None:
    """Send deltas as they come. Headers go out with the first, so that what fails earlier gets its own status.

    `tells_usage`: each chunk says what the request has cost so far.
    """
    async for deltas in choices:
        opening = [] if stream.is_open else reply.opening(num_choices)
        usage = choices.usage if tells_usage else None
        news = [await spelt(len(delta.tokens), partial(reply.news, delta, usage)) for delta in deltas]
        chunks = [chunk for told in news for chunk in told]
        if not stream.is_open:
            await stream.open()
        await stream.send(*opening, *chunks)
    await stream.send(*reply.closing(choices.usage))
