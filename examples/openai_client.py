"""Chats through the OpenAI client (`pip install openai`) and prints the answer while it is generated."""

import argparse

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question", nargs="?", default="Why is the sky blue?")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the gateway")
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()

    # The gateway asks for no key, the client does.
    client = OpenAI(base_url=f"{options.url}/v1", api_key="none")
    model = client.models.list().data[0].id
    chunks = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": options.question}],
        max_tokens=options.max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in chunks:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage is not None:  # in the last chunk
            details = chunk.usage.prompt_tokens_details
            cached_tokens = (details.cached_tokens if details is not None else None) or 0
            print(f"\n[{chunk.usage.prompt_tokens} prompt tokens, {cached_tokens} of them cached]")


if __name__ == "__main__":
    main()
