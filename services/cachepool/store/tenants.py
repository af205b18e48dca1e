"""Who pays for what is stored: bytes by tenant, and who is above its share of the budget. Pure."""

from shared.tenant import Tenant


class Tenants:
    """Bytes by tenant; a tenant without any is not remembered.

    A quota is no reservation: what nobody else needs may be used. It says whose blocks go first when room is needed.
    """

    def __init__(self, budget_bytes: int, share: float) -> None:
        """`share`: the quota of each tenant as a part of the budget; 1 or more: none."""
        self.quota_bytes = int(budget_bytes * min(1.0, share))
        self.has_quota = share < 1
        self._used: dict[Tenant, int] = {}
        self._above: set[Tenant] = set()

    def __len__(self) -> int:
        return len(self._used)

    @property
    def largest_bytes(self) -> int:
        return max(self._used.values(), default=0)

    def used_bytes(self, tenant: Tenant) -> int:
        return self._used.get(tenant, 0)

    def charge(self, tenant: Tenant, num_bytes: int) -> int:
        """Add to a tenant's bytes (negative: give back) and return what it uses now."""
        used = self._used.get(tenant, 0) + num_bytes
        assert used >= 0, "a tenant gave back what it had not taken"
        if used:
            self._used[tenant] = used
        else:
            self._used.pop(tenant, None)
        if self.has_quota:
            (self._above.add if used > self.quota_bytes else self._above.discard)(tenant)
        return used

    def above(self) -> list[Tenant]:
        """Return the tenants above their quota, the largest first. There are fewer than 1 / share of them."""
        return sorted(self._above, key=self._used.__getitem__, reverse=True)
