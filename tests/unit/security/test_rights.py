"""The table of rights: whole, and no wider than needed."""

import pytest

from shared.errors import PeerRefused
from shared.proto import prfaas_pb2 as pb
from shared.security.identity import Identity, ServiceRole
from shared.security.rights import CALLS, LANE, SERVERS, check_right

METHODS = {
    f"/{service.full_name}/{method.name}": service.full_name
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def allowed(caller: Identity, method: str, server_dc: str = "west") -> bool:
    server = Identity(SERVERS[METHODS[method]], server_dc)
    try:
        check_right(caller, server, CALLS[method], f"call {method}")
    except PeerRefused:
        return False
    return True


def test_every_method_of_the_contract_is_in_it_and_nothing_else() -> None:
    assert set(CALLS) == set(METHODS)
    assert set(SERVERS) == set(METHODS.values())


def test_who_may_call_what() -> None:
    callers = {role: Identity(role, "west") for role in ServiceRole}
    may = {method.rpartition("/")[2]: {str(r) for r, c in callers.items() if allowed(c, method)} for method in METHODS}
    assert may == {
        "Prefill": {"gateway"},
        "Generate": {"gateway"},
        "Publish": {"prefill", "decode"},
        "Fetch": {"prefill", "decode", "cachepool"},
        "Lookup": {"prefill", "decode", "cachepool", "gateway"},
        "Lanes": {"prefill", "decode", "cachepool"},
        "Pin": {"gateway"},
        "Unpin": {"gateway"},
        "Snapshot": {"gateway"},
        "Probe": {"cachepool"},
    }


def test_engines_use_the_pools_of_their_own_datacenter_only() -> None:
    for method in METHODS:
        for role in (ServiceRole.PREFILL, ServiceRole.DECODE):
            assert not allowed(Identity(role, "west"), method, server_dc="east"), method
    assert allowed(Identity(ServiceRole.CACHEPOOL, "west"), "/prfaas.v1.CachePool/Fetch", server_dc="east")
    assert allowed(Identity(ServiceRole.GATEWAY, "west"), "/prfaas.v1.Prefill/Prefill", server_dc="east")


def test_the_refusal_names_both_and_the_call() -> None:
    prefill, pool = Identity(ServiceRole.PREFILL, "west"), Identity(ServiceRole.CACHEPOOL, "west")
    with pytest.raises(PeerRefused, match="a prefill of west may not call Pin at the cachepool of west"):
        check_right(prefill, pool, CALLS["/prfaas.v1.CachePool/Pin"], "call Pin")
    with pytest.raises(PeerRefused, match="that takes one of the same datacenter"):
        check_right(prefill, Identity(ServiceRole.CACHEPOOL, "east"), LANE, "open a link")
