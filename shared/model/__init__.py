"""The model: files, tokeniser, paged KV cache and one decoder that covers all supported families."""
