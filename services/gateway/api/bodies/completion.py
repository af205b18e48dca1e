"""The body of `/v1/completions`."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from services.gateway.api.bodies.fields import Prompt
from services.gateway.api.bodies.sampling import Sampling
from shared.errors import BadRequest
from shared.sampling.logprobs import MAX_LOGPROBS


class CompletionBody(Sampling):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {**Sampling.neutral, "suffix": ("",)}

    prompt: Prompt
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: str | None = None

    def check_supported(self) -> None:
        super().check_supported()
        if self.echo and self.logprobs is not None:
            raise BadRequest(
                "echo does not go with logprobs: a prompt has none, for its KV may be cached", param="echo"
            )

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def num_chars(self) -> int:
        if isinstance(self.prompt, str):
            return len(self.prompt)
        if not self.prompt or not isinstance(self.prompt[0], str):  # all are of one type
            return 0
        return sum(len(text) for text in self.prompt if isinstance(text, str))
