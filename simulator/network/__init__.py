"""Links between datacenters as fluids, and what pools see of them."""
