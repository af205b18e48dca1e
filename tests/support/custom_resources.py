"""JSON schemas of the custom resources in our manifests: the fields that we set, as their operators define them.

Strimzi 1.0 (`kafka.strimzi.io/v1`) and KEDA 2.17 (`keda.sh/v1alpha1`). What is not listed is refused: a new field has
to be looked up first.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
CONFIG: Schema = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
EMPTY: Schema = {"type": "object", "maxProperties": 0}


def record(required: str = "", **properties: Schema) -> Schema:
    """Return the schema of an object with these properties and no others."""
    named = {name.rstrip("_"): schema for name, schema in properties.items()}
    return {"type": "object", "properties": named, "required": required.split(), "additionalProperties": False}


def several(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


RESOURCES = record(requests={"type": "object"}, limits={"type": "object"})
CERTIFICATE = record("secretName", secretName=TEXT, pattern=TEXT, certificate=TEXT)
SELECTOR = record(matchLabels={"type": "object"})
PEER = record(namespaceSelector=SELECTOR, podSelector=SELECTOR, ipBlock=record("cidr", cidr=TEXT))
AUTHENTICATION = record(
    "type", type=one_of("tls"), certificateAndKey=record("secretName certificate key", secretName=TEXT,
                                                         certificate=TEXT, key=TEXT)
)  # fmt: skip
LISTENER = record(
    "name port type tls",
    name={"type": "string", "pattern": "^[a-z0-9]{1,11}$"},
    port={"type": "integer", "minimum": 9092},
    type=one_of("internal", "loadbalancer", "nodeport", "cluster-ip"),
    tls={"type": "boolean"},
    authentication=record("type", type=one_of("tls", "scram-sha-512")),
    configuration=record(bootstrap=record(alternativeNames=several(TEXT))),
    networkPolicyPeers=several(PEER),
)
OPERATIONS = one_of("Read", "Write", "Describe", "DescribeConfigs", "Create", "Alter", "Delete", "All")
ACL = record(
    "resource operations",
    resource=record(
        "type", type=one_of("topic", "cluster", "group"), name=TEXT, patternType=one_of("prefix", "literal")
    ),
    operations=several(OPERATIONS),
)
CONNECTED: dict[str, Schema] = {
    "alias": {"type": "string", "pattern": r"^[a-zA-Z0-9\._\-]{1,100}$"},
    "bootstrapServers": TEXT,
    "tls": record(trustedCertificates=several(CERTIFICATE)),
    "authentication": AUTHENTICATION,
    "config": CONFIG,
}
INTERNAL = dict.fromkeys(("groupId", "configStorageTopic", "offsetStorageTopic", "statusStorageTopic"), TEXT)
CONNECTOR = record(tasksMax={"type": "integer", "minimum": 1}, config=CONFIG)

SPECS: dict[tuple[str, str], Schema] = {
    ("kafka.strimzi.io/v1", "KafkaNodePool"): record(
        "replicas roles storage",
        replicas=COUNT,
        roles=several(one_of("controller", "broker")),
        storage=record(
            "type volumes",
            type=one_of("jbod"),
            volumes=several(
                record(
                    "id type",
                    id=COUNT,
                    type=one_of("persistent-claim", "ephemeral"),
                    size=TEXT,
                    kraftMetadata=one_of("shared"),
                )
            ),
        ),
        resources=RESOURCES,
    ),
    ("kafka.strimzi.io/v1", "Kafka"): record(
        "kafka",
        kafka=record(
            "listeners",
            listeners=several(LISTENER),
            config=CONFIG,
            authorization=record("type", type=one_of("simple"), superUsers=several(TEXT)),
        ),
        entityOperator=record(topicOperator=EMPTY, userOperator=EMPTY),
    ),
    ("kafka.strimzi.io/v1", "KafkaTopic"): record(
        "partitions replicas", partitions=COUNT, replicas=COUNT, topicName=TEXT, config=CONFIG
    ),
    ("kafka.strimzi.io/v1", "KafkaUser"): record(
        authentication=record("type", type=one_of("tls", "scram-sha-512")),
        authorization=record("type acls", type=one_of("simple"), acls=several(ACL)),
    ),
    ("kafka.strimzi.io/v1", "KafkaMirrorMaker2"): record(
        "replicas target mirrors",
        replicas=COUNT,
        target=record(f"alias bootstrapServers {' '.join(INTERNAL)}", **CONNECTED, **INTERNAL),
        mirrors=several(
            record(
                "source",
                source=record("alias bootstrapServers", **CONNECTED),
                sourceConnector=CONNECTOR,
                topicsPattern=TEXT,
            )
        ),
        resources=RESOURCES,
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): record(
        "scaleTargetRef triggers",
        scaleTargetRef=record("name", name=TEXT, kind=TEXT, apiVersion=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        cooldownPeriod=COUNT,
        fallback=record(
            "failureThreshold replicas",
            failureThreshold=COUNT,
            replicas=COUNT,
            behavior=one_of("static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"),
        ),
        advanced=record(
            horizontalPodAutoscalerConfig=record(behavior=record(scaleDown=record(stabilizationWindowSeconds=COUNT)))
        ),
        triggers=several(
            record(
                "type metadata",
                type=one_of("prometheus"),
                metricType=one_of("AverageValue", "Value"),
                metadata=record(
                    "serverAddress query threshold", serverAddress=TEXT, query=TEXT, threshold={"pattern": r"^\d+$"}
                ),
            )
        ),
    ),
}
