"""The routing policies by their names in `PRFAAS_ROUTING_POLICY`. A policy is one module here and one line below."""

from collections.abc import Mapping
from typing import Any

from services.gateway.routing.policies.by_chance import ByChance
from services.gateway.routing.policies.cost import ByCost
from services.gateway.routing.policies.deflection import Deflection
from services.gateway.routing.policies.dynamo import DynamoCost
from services.gateway.routing.policies.gorgo import Gorgo
from services.gateway.routing.policies.least_load import LeastLoad
from services.gateway.routing.policies.llm_d import WeightedScores
from services.gateway.routing.policies.lmetric import Lmetric
from services.gateway.routing.policies.mooncake import MooncakeTtft
from services.gateway.routing.policies.options import with_options
from services.gateway.routing.policies.round_robin import RoundRobin
from services.gateway.routing.policies.stay_home import StayHome
from services.gateway.routing.policies.threshold import Threshold
from services.gateway.routing.policies.two_choices import TwoChoices
from services.gateway.routing.policy import RoutingPolicy
from services.gateway.settings import GatewaySettings
from shared.errors import SettingsError

POLICIES: Mapping[str, type[RoutingPolicy]] = {
    "cost": ByCost,
    "threshold": Threshold,
    "dynamo": DynamoCost,
    "lmetric": Lmetric,
    "llm_d": WeightedScores,
    "mooncake": MooncakeTtft,
    "gorgo": Gorgo,
    "deflection": Deflection,
    "stay_home": StayHome,
    "least_load": LeastLoad,
    "power_of_two": TwoChoices,
    "round_robin": RoundRobin,
    "random": ByChance,
}


def policy_of(settings: GatewaySettings) -> RoutingPolicy:
    """Return the policy that the settings name, with their options. Raises `SettingsError`."""
    policy = POLICIES.get(settings.routing_policy)
    if policy is None:
        known = ", ".join(POLICIES)
        raise SettingsError(f"PRFAAS_ROUTING_POLICY: must be one of {known} (got {settings.routing_policy!r})")
    try:
        return with_options(policy, dict(settings.policy_options), **_own_settings(policy, settings))
    except ValueError as error:
        raise SettingsError(f"PRFAAS_POLICY_OPTIONS: {error}") from None


def _own_settings(policy: type[RoutingPolicy], settings: GatewaySettings) -> dict[str, Any]:
    """Return the fields that have settings of their own: those of `threshold`, which is older than the options."""
    if policy is not Threshold:
        return {}
    return {
        "offload_threshold_tokens": settings.offload_threshold_tokens,
        "decode_threshold_tokens": settings.decode_threshold_tokens,
    }
