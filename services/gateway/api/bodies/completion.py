"""The body of `/v1/completions`."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from services.gateway.api.bodies.fields import Natural, Prompt
from services.gateway.api.bodies.sampling import Sampling
from shared.errors import BadRequest
from shared.sampling.logprobs import MAX_LOGPROBS, PromptScoring


class CompletionBody(Sampling):
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        **{name: values for name, values in Sampling.neutral.items() if name != "best_of"},
        "suffix": ("",),
    }

    prompt: Prompt
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    suffix: str | None = None
    max_tokens: Natural | None = None  # 0: the prompt alone

    def check_supported(self) -> None:
        super().check_supported()
        num_wanted = self.n or 1
        if (self.best_of or num_wanted) < num_wanted:
            raise BadRequest(f"best_of must be at least n, which is {num_wanted}", param="best_of")
        if self.chooses_best and self.stream:
            raise BadRequest("best_of does not go with stream: true: the best are known at the end", param="best_of")

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def tells_prompt(self) -> bool:
        """Whether `logprobs` concerns the prompt's tokens too."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def chooses_best(self) -> bool:
        return (self.best_of or 1) > (self.n or 1)

    @property
    def num_choices(self) -> int:
        return self.best_of or self.n or 1

    @property
    def scoring(self) -> PromptScoring | None:
        if not self.tells_prompt:
            return super().scoring
        return PromptScoring(1, max(self.logprobs or 0, self.prompt_logprobs or 0))

    @property
    def num_chars(self) -> int:
        if isinstance(self.prompt, str):
            return len(self.prompt)
        if not self.prompt or not isinstance(self.prompt[0], str):  # all are of one type
            return 0
        return sum(len(text) for text in self.prompt if isinstance(text, str))
