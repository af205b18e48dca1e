"""What all bodies have in common."""

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """Base of all bodies: JSON types as they are, no coercion. `UnknownFields` judges fields that it does not have."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, hide_input_in_errors=True)

    model: str | None = None

    @property
    def num_chars(self) -> int:
        """Characters that are to be tokenised."""
        return 0
