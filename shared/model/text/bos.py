"""Begin-of-sequence tokens, for model files that name one without their tokeniser adding it."""

from tokenizers import Tokenizer, processors


def prepend_token(tokenizer: Tokenizer, token: str) -> None:
    """Make `tokenizer` start every text with `token` (usually BOS) when it adds special tokens."""
    template = processors.TemplateProcessing(
        single=[token, "$A"], pair=[token, "$A", token, "$B"], special_tokens=[(token, tokenizer.token_to_id(token))]
    )
    previous = tokenizer.post_processor
    tokenizer.post_processor = template if previous is None else processors.Sequence([previous, template])
