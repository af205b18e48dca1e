"""Topics on Kubernetes are those of the bus, and what MirrorMaker copies is what gateways read."""

import re

import pytest

from services.gateway.settings import GatewaySettings
from shared.bus.connection import MAX_REPLICAS
from shared.bus.kafka import TOPICS, topics_with_copies
from shared.config import load
from tests.support.manifests import OVERLAYS, image_of, of_kind, rendered, workloads


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_topics_that_are_read_are_declared_as_the_bus_makes_them(overlay: str) -> None:
    documents = rendered(overlay)
    mirrors: set[str] = set()
    for workload in workloads(documents):
        environ = workload.environ(image_of(workload.service)[0])
        host = "prfaas-kafka-bootstrap.prfaas-kafka.svc:9092"  # the name that Strimzi gives
        assert environ["PRFAAS_KAFKA"] == host
        if workload.service == "gateway":
            mirrors |= set(load(GatewaySettings, environ).kafka_mirrors)
    declared = {found["metadata"]["name"]: found["spec"] for found in of_kind(documents, "KafkaTopic")}
    wanted = {topic.name: topic for topic in topics_with_copies(sorted(mirrors))}
    assert declared.keys() == wanted.keys()
    for name, spec in declared.items():
        config = {key: str(value) for key, value in spec["config"].items()}
        assert (spec["partitions"], config) == (wanted[name].num_partitions, wanted[name].config)
        assert spec["replicas"] == MAX_REPLICAS
    brokers = of_kind(documents, "KafkaNodePool")[0]["spec"]["replicas"]
    assert brokers >= MAX_REPLICAS


def test_what_is_copied_from_the_east_is_what_gateways_of_the_west_read() -> None:
    (mirror,) = of_kind(rendered("two-datacenters/west"), "KafkaMirrorMaker2")
    (copied,) = mirror["spec"]["mirrors"]
    pattern = re.compile(copied["topicsPattern"])
    for topic in topics_with_copies(["east", "west"]):
        assert bool(pattern.fullmatch(topic.name)) == (topic in TOPICS), "copies are not copied on"
    (source, target) = (copied["source"]["alias"], mirror["spec"]["target"]["alias"])
    assert (source, target) == ("east", "west")
    assert "replication.policy.class" not in copied["sourceConnector"]["config"], "names would not tell copies"


def test_the_mirror_may_read_in_the_east_and_do_nothing_else() -> None:
    east = rendered("two-datacenters/east")
    (user,) = of_kind(east, "KafkaUser")
    (copied,) = of_kind(rendered("two-datacenters/west"), "KafkaMirrorMaker2")[0]["spec"]["mirrors"]
    assert copied["source"]["authentication"]["certificateAndKey"]["secretName"] == user["metadata"]["name"]
    operations = {each for acl in user["spec"]["authorization"]["acls"] for each in acl["operations"]}
    assert operations == {"Read", "Describe", "DescribeConfigs"}
    assert copied["sourceConnector"]["config"]["offset-syncs.topic.location"] == "target"
    (kafka,) = of_kind(east, "Kafka")
    (outer,) = [each for each in kafka["spec"]["kafka"]["listeners"] if each["type"] != "internal"]
    host, _, port = copied["source"]["bootstrapServers"].partition(":")
    assert outer["port"] == int(port)
    assert host in outer["configuration"]["bootstrap"]["alternativeNames"]
    assert (outer["tls"], outer["authentication"]) == (True, {"type": "tls"})
    assert kafka["spec"]["kafka"]["authorization"]["type"] == "simple", "or its rights would mean nothing"
