"""The JSON that clients get: OpenAI's objects, whole and in chunks."""
