"""The routing policies by their names in `PRFAAS_ROUTING_POLICY`. A policy is one module here and one line below."""

from collections.abc import Callable, Mapping

from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.policies.least_load import LeastLoad
from services.gateway.routing.policies.stay_home import StayHome
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.policy import RoutingPolicy
from services.gateway.settings import GatewaySettings
from shared.errors import SettingsError

POLICIES: Mapping[str, Callable[[GatewaySettings], RoutingPolicy]] = {
    "cost": lambda _settings: ByCost(),
    "threshold": lambda settings: Threshold(settings.offload_threshold_tokens, settings.decode_threshold_tokens),
    "stay_home": lambda _settings: StayHome(),
    "least_load": lambda _settings: LeastLoad(),
}


def policy_of(settings: GatewaySettings) -> RoutingPolicy:
    """Return the policy that the settings name. Raises `SettingsError`."""
    make = POLICIES.get(settings.routing_policy)
    if make is None:
        known = ", ".join(POLICIES)
        raise SettingsError(f"PRFAAS_ROUTING_POLICY: must be one of {known} (got {settings.routing_policy!r})")
    return make(settings)
