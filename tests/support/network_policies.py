"""Which pods may speak to which, as Kubernetes reads network policies."""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.manifests import Document, selects


@dataclass(frozen=True)
class PolicyPeer:
    """A pod, or somebody who is none of ours. Selectors see pods of their own cluster only."""

    name: str
    cluster: str
    namespace: str
    namespace_labels: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "192.0.2.1"
    ports: Mapping[str, int] = field(default_factory=dict)  # by the name in the pod


class Policies:
    """The policies of each cluster."""

    def __init__(self, policies: Mapping[str, Sequence[Document]]) -> None:
        self._policies = policies

    def allow(self, source: PolicyPeer, target: PolicyPeer, port: int) -> bool:
        """Check whether a TCP connection may be opened: egress of the one, ingress of the other."""
        return self._one_way("Egress", source, target, port, target) and self._one_way(
            "Ingress", target, source, port, target
        )

    def _one_way(self, direction: str, owner: PolicyPeer, other: PolicyPeer, port: int, server: PolicyPeer) -> bool:
        mine = [
            policy["spec"]
            for policy in self._policies.get(owner.cluster, ())
            if policy["metadata"]["namespace"] == owner.namespace
            and direction in policy["spec"]["policyTypes"]
            and selects(policy["spec"]["podSelector"], owner.labels)
        ]
        peers = {"Egress": "to", "Ingress": "from"}[direction]
        rules = [rule for spec in mine for rule in spec.get(direction.lower(), ())]
        return not mine or any(
            _has_port(rule, port, server) and any(_is_peer(peer, owner, other) for peer in rule[peers])
            for rule in rules
        )


def _has_port(rule: Mapping[str, Any], port: int, server: PolicyPeer) -> bool:
    named = [server.ports.get(each["port"], each["port"]) for each in rule["ports"] if each["protocol"] == "TCP"]
    return port in named


def _is_peer(peer: Mapping[str, Any], owner: PolicyPeer, other: PolicyPeer) -> bool:
    if "ipBlock" in peer:
        return ipaddress.ip_address(other.address) in ipaddress.ip_network(peer["ipBlock"]["cidr"])
    if owner.cluster != other.cluster:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], other.namespace_labels):
            return False
    elif owner.namespace != other.namespace:
        return False
    return selects(peer.get("podSelector", {}), other.labels)
