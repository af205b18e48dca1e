"""KV blocks as data: layout, keys, frames and codecs. Pure, except `tensors`, which alone imports torch."""
