"""The output of a response as it comes: items, and the events that tell of them."""

from collections.abc import Iterator, Sequence

from services.gateway.api.replies.read import new_call_id
from services.gateway.api.replies.reply import Json
from services.gateway.syntax.parts import AnswerPart, CallArguments, CallBegun, ContentPart


class OutputItems:
    """Collects an answer's parts as items. At most the last item is still growing.

    Methods that take something yield the events that it is worth, without their sequence numbers.
    """

    def __init__(self, response_id: str) -> None:
        self._suffix = response_id.partition("_")[2]
        self.items: list[Json] = []
        self._is_growing = False

    def take(self, part: AnswerPart, logprobs: Sequence[Json] = ()) -> Iterator[Json]:
        """Take the next part. `logprobs` are of the tokens of a content."""
        if isinstance(part, CallBegun):
            yield from self._close("completed")
            call = {"type": "function_call", "call_id": new_call_id(), "name": part.name, "arguments": ""}
            yield from self._open("fc", call)
        elif isinstance(part, CallArguments):
            self.items[-1]["arguments"] += part.text
            yield self._event("response.function_call_arguments.delta", delta=part.text)
        else:
            yield from self._text(part.text, isinstance(part, ContentPart), logprobs)

    def finish(self, status: str) -> Iterator[Json]:
        """Close the last item; an answer of nothing is an empty message."""
        if not self.items:
            yield from self._open_text(is_content=True)
        yield from self._close(status)

    def _text(self, text: str, is_content: bool, logprobs: Sequence[Json]) -> Iterator[Json]:
        kind = "message" if is_content else "reasoning"
        if not (self._is_growing and self.items[-1]["type"] == kind):
            yield from self._close("completed")
            yield from self._open_text(is_content)
        part = self.items[-1]["content"][0]
        part["text"] += text
        if is_content:
            part["logprobs"] += logprobs
            yield self._part_event("response.output_text.delta", delta=text, logprobs=list(logprobs))
        else:
            yield self._part_event("response.reasoning_text.delta", delta=text)

    def _open_text(self, is_content: bool) -> Iterator[Json]:
        if is_content:
            yield from self._open("msg", {"type": "message", "role": "assistant", "content": []})
            part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            yield from self._open("rs", {"type": "reasoning", "summary": [], "content": []})
            part = {"type": "reasoning_text", "text": ""}
        self.items[-1]["content"] = [part]
        yield self._part_event("response.content_part.added", part=dict(part))

    def _open(self, prefix: str, item: Json) -> Iterator[Json]:
        item = {"id": f"{prefix}_{self._suffix}_{len(self.items)}", "status": "in_progress", **item}
        self.items.append(item)
        self._is_growing = True
        yield {
            "type": "response.output_item.added",
            "output_index": len(self.items) - 1,
            "item": dict(item),
        }

    def _close(self, status: str) -> Iterator[Json]:
        if not self._is_growing:
            return
        self._is_growing = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            called = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **called)
        else:
            part = item["content"][0]
            if item["type"] == "message":
                yield self._part_event("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
            else:
                yield self._part_event("response.reasoning_text.done", text=part["text"])
            yield self._part_event("response.content_part.done", part=part)
        yield {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}

    def _event(self, kind: str, **fields: object) -> Json:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **fields}

    def _part_event(self, kind: str, **fields: object) -> Json:
        return {**self._event(kind), "content_index": 0, **fields}
