"""Network policies let through what the processes say to one another, and nothing else."""

from collections.abc import Iterator
from itertools import product

import pytest

from tests.support.manifests import Document, of_kind, rendered, workloads
from tests.support.network_policies import Policies, PolicyPeer

GRPC, LANE, STATUS, API, KAFKA = 7100, 7101, 7200, 8000, 9092
PORTS = (GRPC, LANE, STATUS, API, KAFKA)

CALLS = {("gateway", "prefill"), ("gateway", "decode"), ("gateway", "cachepool")}
"""Over gRPC, wherever both are."""
PAYLOADS = {("prefill", "cachepool"), ("decode", "cachepool")}
"""Over gRPC and on sockets, within a datacenter. Pools do so with any pool."""

CLUSTERS = {
    "one cluster": {"one": "one-cluster"},
    "GPUs": {"one": "gpu"},
    "two clusters": {"east": "two-datacenters/east", "west": "two-datacenters/west"},
}
NETWORKS = {"one": "10.0.0", "east": "10.64.0", "west": "10.128.0"}


def outsiders(cluster: str, namespaces: dict[str, Document]) -> Iterator[PolicyPeer]:
    """Return those that are none of the suite's processes."""
    labels = namespaces["prfaas-kafka"]["metadata"].get("labels", {})
    labels = {**labels, "kubernetes.io/metadata.name": "prfaas-kafka"}
    yield PolicyPeer("kafka", cluster, "prfaas-kafka", labels, {"strimzi.io/kind": "Kafka"})
    yield PolicyPeer("prometheus", cluster, "monitoring", {"kubernetes.io/metadata.name": "monitoring"})
    yield PolicyPeer("client", cluster, "web", {"prfaas-clients": "allowed"})
    yield PolicyPeer("stranger", cluster, "default", {}, {"app.kubernetes.io/name": "gateway"})


def peers(cluster: str, overlay: str) -> Iterator[PolicyPeer]:
    documents = rendered(overlay)
    namespaces = {d["metadata"]["name"]: d for d in of_kind(documents, "Namespace")}
    for number, workload in enumerate(workloads(documents), 10):
        labels = {
            **namespaces[workload.namespace]["metadata"]["labels"],
            "kubernetes.io/metadata.name": workload.namespace,
        }
        ports = {port["name"]: port["containerPort"] for port in workload.container["ports"]}
        address = f"{NETWORKS[cluster]}.{number}"
        yield PolicyPeer(workload.name, cluster, workload.namespace, labels, workload.labels, address, ports)
    yield from outsiders(cluster, namespaces)


def may(source: PolicyPeer, target: PolicyPeer, port: int) -> bool:
    """Say who has to reach whom."""
    here = source.cluster == target.cluster
    ours = source.namespace.startswith("prfaas-") and source.name != "kafka"
    match target.name:
        case "kafka":
            return port == KAFKA and ours and here
        case "gateway":
            return port == API and here and source.name in {"client", "prometheus"}
        case "prefill" | "decode" | "cachepool" if source.name == "prometheus":
            return port == STATUS and here
    if not ours or not target.namespace.startswith("prfaas-"):
        return False
    if port == GRPC and (source.name, target.name) in CALLS:
        return True
    if (source.name, target.name, port) == ("cachepool", "prefill", GRPC) and source.cluster == "west" and not here:
        return True  # need not, but addresses do not tell the pods of another cluster apart
    if source.name == target.name == "cachepool":
        return port in {GRPC, LANE}
    return port in {GRPC, LANE} and (source.name, target.name) in PAYLOADS and source.namespace == target.namespace


@pytest.mark.parametrize("case", CLUSTERS)
def test_exactly_those_reach_one_another_that_have_to(case: str) -> None:
    clusters = CLUSTERS[case]
    everybody = [peer for cluster, overlay in clusters.items() for peer in peers(cluster, overlay)]
    policies = Policies({cluster: of_kind(rendered(overlay), "NetworkPolicy") for cluster, overlay in clusters.items()})
    inside = {peer.name for peer in everybody if peer.namespace.startswith("prfaas-")}
    assert {"prefill", "decode", "cachepool", "gateway", "kafka"} == inside
    wrong = []
    for source, target, port in product(everybody, everybody, PORTS):
        outside = {"client", "stranger", "prometheus", "kafka"}
        if source is target or (source.name in outside and target.name in outside):
            continue
        if policies.allow(source, target, port) != may(source, target, port):
            wrong.append((source.cluster, source.namespace, source.name, target.cluster, target.name, port))
    assert not wrong


def test_names_can_be_resolved() -> None:
    for overlay in CLUSTERS["two clusters"].values():
        for policy in of_kind(rendered(overlay), "NetworkPolicy"):
            if policy["metadata"]["name"] == "dns-and-kafka":
                ports = [(p["protocol"], p["port"]) for rule in policy["spec"]["egress"] for p in rule["ports"]]
                assert {("UDP", 53), ("TCP", 53)} <= set(ports)
                break
        else:
            pytest.fail("nobody may ask for names")
