"""Real text for prompts: the Python language reference, which ships with every interpreter."""

from pydoc_data.topics import topics


def real_text(num_chars: int, skip: int = 0) -> str:
    """Return `num_chars` characters of English prose and code, from position `skip` on."""
    text = "\n".join(topics[name] for name in sorted(topics))
    return text[skip : skip + num_chars]
