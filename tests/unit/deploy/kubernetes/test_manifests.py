"""The manifests are valid, and true to the processes, their settings and their images."""

import re
from collections import Counter
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from prometheus_client import CollectorRegistry

from services.cachepool.settings import PoolSettings
from services.decode.settings import DecodeSettings
from services.gateway.settings import GatewaySettings
from services.prefill.settings import PrefillSettings
from shared.config import ServiceSettings, load, parse_bytes
from shared.service.health import Health
from shared.service.http import status_routes
from tests.support.custom_resources import SPECS
from tests.support.manifests import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    Document,
    PodWorkload,
    image_of,
    of_kind,
    rendered,
    selects,
    workloads,
)

VERSIONS = ("1.30", kubernetes_validate.latest_version())
SETTINGS: dict[str, type[ServiceSettings]] = {
    "cachepool": PoolSettings,
    "prefill": PrefillSettings,
    "decode": DecodeSettings,
    "gateway": GatewaySettings,
}
PAGES = (ROOT / "docs/settings.md", ROOT / "docs/security/settings.md")
KNOWN = {name for page in PAGES for name in re.findall(r"`(PRFAAS_\w+)`", page.read_text())}
MEMORY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def quantity(text: str) -> int:
    return int(text[:-2]) * MEMORY[text[-2:]]


def all_workloads() -> list[Any]:
    return [
        pytest.param(overlay, number, id=f"{overlay}-{number}")
        for overlay in OVERLAYS
        for number in range({"one-cluster": 6, "gpu": 6, "two-datacenters/west": 4, "two-datacenters/east": 2}[overlay])
    ]


@pytest.fixture
def workload(overlay: str, number: int) -> PodWorkload:
    return list(workloads(rendered(overlay)))[number]


def image_environ(workload: PodWorkload) -> dict[str, str]:
    """Return what the workload's image sets. Those for GPUs are built from another file, and set the same and more."""
    environ, _ = image_of(workload.service)
    return environ


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_is_valid(overlay: str) -> None:
    documents = rendered(overlay)
    for document in documents:
        spec = SPECS.get((document["apiVersion"], document["kind"]))
        if spec is not None:
            jsonschema.validate(document["spec"], spec)
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    named = Counter((d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in documents)
    assert max(named.values()) == 1
    spaces = {d["metadata"]["name"] for d in of_kind(documents, "Namespace")}
    assert {d["metadata"]["namespace"] for d in documents if d["kind"] != "Namespace"} == spaces


def test_a_document_with_an_unknown_field_is_refused() -> None:
    (kafka,) = of_kind(rendered("one-cluster"), "Kafka")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**kafka["spec"], "zookeeper": {}}, SPECS[kafka["apiVersion"], "Kafka"])
    (claim, *_) = of_kind(rendered("gpu"), "PersistentVolumeClaim")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**claim, "spec": {**claim["spec"], "size": 1}}, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_is_named_is_there(overlay: str) -> None:
    documents = rendered(overlay)
    ours = list(workloads(documents))
    for document in documents:
        meta, spec = document["metadata"], document.get("spec", {})
        labels = [w.labels for w in ours if w.namespace == meta.get("namespace")]
        match document["kind"]:
            case "Service":
                assert any(spec["selector"].items() <= each.items() for each in labels), meta
            case "Deployment" | "StatefulSet":
                own = [w.labels for w in ours if (w.namespace, w.name) == (meta["namespace"], meta["name"])]
                assert [selects(spec["selector"], each) for each in own] == [True]
                assert sum(selects(spec["selector"], each) for each in labels) == 1, "a pod of two owners"
            case "PodDisruptionBudget":
                assert sum(selects(spec["selector"], each) for each in labels) == 1, meta
            case "NetworkPolicy":
                assert any(selects(spec["podSelector"], each) for each in labels), meta
            case "ScaledObject":
                assert spec["scaleTargetRef"]["name"] in {w.name for w in ours if w.kind == "Deployment"}
    for workload in ours:
        wanted = {
            source["configMapRef"]["name"] for source in workload.container["envFrom"] if "configMapRef" in source
        }
        there = {d["metadata"]["name"] for d in of_kind(documents, "ConfigMap", workload.namespace)}
        assert wanted <= there
        claims = {
            v["persistentVolumeClaim"]["claimName"] for v in workload.pod["volumes"] if "persistentVolumeClaim" in v
        }
        assert claims <= {
            d["metadata"]["name"] for d in of_kind(documents, "PersistentVolumeClaim", workload.namespace)
        }


@pytest.mark.parametrize(("overlay", "number"), all_workloads())
def test_a_process_starts_with_the_settings_that_it_is_given(workload: PodWorkload) -> None:
    environ = workload.environ(image_environ(workload))
    ours = {name: value for name, value in environ.items() if name.startswith("PRFAAS_")}
    assert set(ours) <= KNOWN
    settings = load(SETTINGS[workload.service], ours)
    assert f"prfaas-{settings.dc}" == workload.namespace
    assert settings.worker_id == f"{workload.name}-0-{settings.dc}"
    ports = {port["name"]: port["containerPort"] for port in workload.container["ports"]}
    assert ports.pop("http") == settings.http_port
    assert settings.http_host == "0.0.0.0"
    if workload.service != "gateway":
        assert (settings.grpc_host, settings.advertise_host) == ("0.0.0.0", "10.0.0.1")
        assert ports.pop("grpc") == settings.grpc_port
    if isinstance(settings, PoolSettings):
        assert ports.pop("lane") == settings.lane_port
        limit = quantity(workload.container["resources"]["limits"]["memory"])
        assert limit >= 1.3 * settings.pool_bytes + parse_bytes("256MiB")
    elif isinstance(settings, PrefillSettings | DecodeSettings):
        host, _, port = settings.pool.partition(":")
        (service,) = [
            d for d in of_kind(workload.documents, "Service", workload.namespace) if d["metadata"]["name"] == host
        ]
        assert int(port) in {each["port"] for each in service["spec"]["ports"]}
    assert not ports
    grace_s, container = workload.pod["terminationGracePeriodSeconds"], workload.container
    before_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1]) if "lifecycle" in container else 0
    assert grace_s >= before_s + settings.drain_s + 10


@pytest.mark.parametrize(("overlay", "number"), all_workloads())
def test_probes_ask_what_the_process_answers(workload: PodWorkload) -> None:
    served = {route.path for route in status_routes(CollectorRegistry(), Health())}
    ports = {port["name"] for port in workload.container["ports"]}
    for name, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        asked = workload.container[name]["httpGet"]
        assert asked["path"] == path
        assert path in served
        assert asked["port"] in ports
    number = workload.template["metadata"]["annotations"]["prometheus.io/port"]
    assert int(number) == next(p["containerPort"] for p in workload.container["ports"] if p["name"] == "http")


@pytest.mark.parametrize(("overlay", "number"), all_workloads())
def test_a_container_may_do_nothing_that_it_need_not(workload: PodWorkload) -> None:
    uid = int(re.findall(r"useradd --uid (\d+)", (ROOT / "deploy/Dockerfile").read_text())[0])
    security = workload.pod["securityContext"]
    assert (security["runAsUser"], security["runAsNonRoot"]) == (uid, True)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert workload.pod["automountServiceAccountToken"] is False
    assert workload.pod["enableServiceLinks"] is False
    for container in [workload.container, *workload.pod.get("initContainers", ())]:
        confined = container["securityContext"]
        assert confined["allowPrivilegeEscalation"] is False
        assert confined["readOnlyRootFilesystem"] is True
        assert confined["capabilities"]["drop"] == ["ALL"]
        assert "memory" in container["resources"]["limits"]
    (space,) = [d for d in of_kind(workload.documents, "Namespace") if d["metadata"]["name"] == workload.namespace]
    if space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted":
        assert not workload.pod.get("initContainers")
        assert not any("hostPath" in volume for volume in workload.pod["volumes"])


@pytest.mark.parametrize(("overlay", "number"), all_workloads())
def test_a_process_can_write_where_it_writes(workload: PodWorkload) -> None:
    """The root is read-only: all folders that are written to are volumes."""
    environ = workload.environ(image_environ(workload))
    mounts = {m["mountPath"] for m in workload.container["volumeMounts"] if not m.get("readOnly")}
    needed = {"/tmp"}
    if workload.service == "cachepool":
        needed |= {"/var/lib/prfaas", "/run/prfaas"}
        assert environ["PRFAAS_POOL_LANE_FOLDER"].startswith("/run/prfaas/"), "the mount itself is not this user's"
        assert environ["PRFAAS_POOL_OBJECT_URL"] == "file:///var/lib/prfaas"
    else:
        needed.add(environ["PRFAAS_CACHE_DIR"])
    assert needed <= mounts


@pytest.mark.parametrize(("overlay", "number"), all_workloads())
def test_an_image_runs_the_service_that_its_workload_is_named_for(workload: PodWorkload) -> None:
    container, module = workload.container, ["python", "-m", f"services.{workload.service}"]
    _, entry_point = image_of(workload.service)
    if container["image"] == f"prfaas-{workload.service}":
        assert "command" not in container
        assert entry_point == module
    else:
        assert container["image"] == f"prfaas-{workload.service}-gpu"
        assert container["command"] == module
        assert "nvidia.com/gpu" in container["resources"]["limits"]
        gpu = (ROOT / "deploy/gpu.Dockerfile").read_text()
        assert all(f"PRFAAS_{name}" in gpu for name in ("GRPC_PORT=7100", "HTTP_PORT=7200", "CACHE_DIR=/cache"))


@pytest.mark.parametrize(("overlay", "number"), all_workloads())
def test_the_lane_of_one_host_is_used_where_its_folder_is_shared(workload: PodWorkload) -> None:
    lanes = workload.environ({})["PRFAAS_LANES"].split(",")
    if workload.service == "gateway":
        return
    folders = {v["name"]: v["hostPath"]["path"] for v in workload.pod["volumes"] if "hostPath" in v}
    mounted = [(m["mountPath"], folders[m["name"]]) for m in workload.container["volumeMounts"] if m["name"] in folders]
    assert ("shared_memory" in lanes) == (mounted == [("/run/prfaas", "/run/prfaas")])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_autoscalers_follow_the_gauge_of_their_role_and_datacenter(overlay: str) -> None:
    for found in of_kind(rendered(overlay), "ScaledObject"):
        role, dc = found["spec"]["scaleTargetRef"]["name"], found["metadata"]["namespace"].removeprefix("prfaas-")
        (trigger,) = found["spec"]["triggers"]
        assert trigger["metadata"]["query"] == f'max(prfaas:desired_replicas{{role="{role}", dc="{dc}"}})'
        (target,) = [
            d
            for d in of_kind(rendered(overlay), "Deployment", found["metadata"]["namespace"])
            if d["metadata"]["name"] == role
        ]
        assert "replicas" not in target["spec"], "each apply would set the number back"
    assert "`desired_replicas{role,dc}`" in (ROOT / "docs/metrics.md").read_text()


def test_every_component_and_overlay_is_used() -> None:
    texts = [path.read_text() for path in KUBERNETES.rglob("kustomization.yaml")]
    for component in (KUBERNETES / "components").iterdir():
        assert any(f"components/{component.name}" in text for text in texts), component.name
    folders = {path.parent for path in (KUBERNETES / "overlays").rglob("kustomization.yaml")}
    assert {KUBERNETES / "overlays" / overlay for overlay in OVERLAYS} <= folders
    for path in KUBERNETES.rglob("*.yaml"):
        if path.name != "kustomization.yaml":
            assert path.name in (path.parent / "kustomization.yaml").read_text(), path


def test_images_of_compose_and_kubernetes_are_the_same() -> None:
    compose: Document = {"image": re.findall(r"image: (prfaas-\w+)", (ROOT / "compose.yaml").read_text())}
    used = {w.container["image"] for w in workloads(rendered("one-cluster"))}
    assert used == set(compose["image"])
