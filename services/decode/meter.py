"""What a decode engine measures about itself."""

from services.decode.steps.runner import DecodeStep, StepOutcome
from shared.measuring.rates import RecentMean
from shared.metrics import INTER_TOKEN_BUCKETS_S, Metrics

SPEED_SMOOTHING = 0.1
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, *INTER_TOKEN_BUCKETS_S)


class StepMeter:
    """Counts tokens and times steps. The share of steps spent outside the model is a quotient of two of its sums."""

    def __init__(self, metrics: Metrics) -> None:
        self.tokens_per_s = 0.0
        self.answer_tokens = RecentMean()
        self.generated = metrics.counter("generation_tokens", "Tokens generated")
        self.computed_prompt = metrics.counter("decode_computed_prompt_tokens", "Prompt tokens computed by decode")
        self.scored = metrics.counter(
            "decode_scored_prompt_tokens", "Prompt tokens whose log-probabilities were computed"
        )
        self.recomputed = metrics.counter("decode_recomputed_tokens", "Tokens computed again after a pre-emption")
        self._steps = metrics.histogram(
            "decode_step_seconds",
            "Steps of a running batch: how long a token takes",
            STEP_BUCKETS_S,
        )
        self._outside = metrics.counter("decode_step_outside_model_seconds", "Of these steps, outside the model")
        self._tail_tokens = metrics.counter("decode_step_tail_tokens", "Tokens of tails computed in these steps")

    def stepped(self, step: DecodeStep, num_tail_tokens: float, outcome: StepOutcome, seconds: float) -> None:
        """Note one turn of the loop; those without a batch concern nobody's tokens."""
        if not step.batch:
            return
        self._steps.observe(seconds)
        self._tail_tokens.inc(num_tail_tokens)
        self._outside.inc(max(0.0, seconds - outcome.model_s))
        speed = len(step.batch) / seconds
        self.tokens_per_s += (speed - self.tokens_per_s) * (SPEED_SMOOTHING if self.tokens_per_s else 1.0)
