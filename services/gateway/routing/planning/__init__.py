"""The throughput model of arXiv 2604.15039: from profiles, lengths and a link to a capacity plan. Pure."""
