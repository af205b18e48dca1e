"""How a pool's client carries payloads: one module a lane, and who chooses among them."""
