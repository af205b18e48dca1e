"""The manifests of deploy/kubernetes as kubectl renders them, and what is in them."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
OVERLAYS = ("one-cluster", "two-datacenters/east", "two-datacenters/west", "gpu")

Document = dict[str, Any]

_REFERENCE = re.compile(r"\$\(([A-Za-z0-9_]+)\)")


@dataclass(frozen=True)
class PodWorkload:
    """One container that runs for good, with what is around it."""

    kind: str
    name: str
    namespace: str
    template: Document
    documents: tuple[Document, ...]

    @property
    def service(self) -> str:
        return self.name

    @property
    def pod(self) -> Document:
        spec: Document = self.template["spec"]
        return spec

    @property
    def container(self) -> Document:
        (container,) = self.pod["containers"]
        found: Document = container
        return found

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.template["metadata"]["labels"]
        return labels

    def environ(self, image: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the process in a pod of this workload, on top of what its image sets."""
        values = dict(image)
        for source in self.container["envFrom"]:
            if "configMapRef" in source:
                values |= self._config(source["configMapRef"]["name"])
        known = {"POD": f"{self.name}-0", "IP": "10.0.0.1"}
        own: dict[str, str] = {}
        for entry in self.container["env"]:
            if "value" in entry:
                own[entry["name"]] = _REFERENCE.sub(lambda found: own[found[1]], entry["value"])
            elif "configMapKeyRef" in entry["valueFrom"]:
                reference = entry["valueFrom"]["configMapKeyRef"]
                own[entry["name"]] = self._config(reference["name"])[reference["key"]]
            else:
                path = entry["valueFrom"]["fieldRef"]["fieldPath"]
                own[entry["name"]] = known[{"metadata.name": "POD", "status.podIP": "IP"}[path]]
        return values | own

    def _config(self, name: str) -> dict[str, str]:
        (found,) = [d for d in of_kind(self.documents, "ConfigMap", self.namespace) if d["metadata"]["name"] == name]
        data: dict[str, str] = found["data"]
        return data


@cache
def rendered(overlay: str) -> tuple[Document, ...]:
    """Render an overlay. Skips the test where there is no kubectl."""
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl here")
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(documents: tuple[Document, ...], kind: str, namespace: str = "") -> list[Document]:
    """Return the documents of a kind; without a namespace, of all."""
    return [d for d in documents if d["kind"] == kind and namespace in ("", d["metadata"].get("namespace"))]


def workloads(documents: tuple[Document, ...]) -> Iterator[PodWorkload]:
    """Return what runs pods of ours."""
    for kind in ("Deployment", "StatefulSet"):
        for found in of_kind(documents, kind):
            meta = found["metadata"]
            yield PodWorkload(kind, meta["name"], meta["namespace"], found["spec"]["template"], documents)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Check a label selector, which selects everything when it is empty."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    expressions = selector.get("matchExpressions", [])
    assert all(each["operator"] == "In" for each in expressions), "no other operator is understood here"
    return wanted and all(labels.get(each["key"]) in each["values"] for each in expressions)


@cache
def image_of(target: str) -> tuple[dict[str, str], list[str] | None]:
    """Return what a target of deploy/Dockerfile sets in the environment, and its entry point."""
    stages: dict[str, tuple[dict[str, str], list[str] | None]] = {}
    name = ""
    text = re.sub(r"\\\n", " ", (ROOT / "deploy/Dockerfile").read_text())
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            parent, _, name = rest.partition(" AS ")
            stages[name] = (dict(stages[parent][0]), None) if parent in stages else ({}, None)
        elif word == "ENV":
            stages[name][0].update((key, value) for key, _, value in (pair.partition("=") for pair in rest.split()))
        elif word == "ENTRYPOINT":
            stages[name] = (stages[name][0], json.loads(rest))
    return stages[target]
