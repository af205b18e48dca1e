"""Checks of what runs: the gateway and what it says of its workers, Kafka, clocks, versions."""

import asyncio
import logging
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from prometheus_client.parser import text_string_to_metric_families

from deploy.cli.doctor.finding import Finding, failed, fine, warned
from deploy.cli.failure import CommandFailed
from deploy.cli.gateway import UNAVAILABLE, GatewayClient

KAFKA_TIMEOUT_S = 3.0
MAX_SKEW_S = 2.0
"""The gateway's clock is known to a second."""
SKIPPED = "prfaas:kafka_events_skipped"


def gateway_answers(client: GatewayClient) -> bool:
    try:
        client.json("/livez")
    except CommandFailed:
        return False
    return True


def gateway(client: GatewayClient) -> Finding:
    """Check that a completion would be accepted, and that the gateway can use each worker that it knows."""
    try:
        told = client.json("/health", also=UNAVAILABLE)
        reasons, problems, workers = told["reasons"], told["problems"], told["workers"]
    except CommandFailed as failure:
        return failed("gateway", str(failure), "start the suite; if it runs, look at the gateway's log")
    except (LookupError, TypeError):
        return failed("gateway", f"{client.url} is no gateway of PrfaaS", "name the gateway with --gateway")
    if reasons:
        return failed("gateway", "; ".join([*reasons, *problems]), "look at the logs of the workers that are missing")
    if problems:
        return warned("gateway", "; ".join(problems), "look at these workers' logs and settings")
    counts = ", ".join(f"{len(names)} {role}" for role, names in workers.items())
    return fine("gateway", f"{client.url} serves: {counts}")


def kafka(bootstrap: str, *, is_needed: bool) -> Finding:
    """Check that a broker answers. `is_needed`: something runs, or the variable is set; else `prfaas up` brings one."""
    talkative = logging.getLogger("aiokafka")
    level = talkative.level
    talkative.setLevel(logging.CRITICAL)  # what it has to say is raised as well
    try:
        num_topics = asyncio.run(_list_topics(bootstrap))
    except (OSError, TimeoutError, KafkaError, ValueError) as error:
        reason = str(error) or type(error).__name__
        if not is_needed:
            return fine("kafka", f"no broker at {bootstrap} yet; `prfaas up` starts one")
        return failed(
            "kafka",
            f"no broker answers at {bootstrap}: {reason}",
            "start the broker, or correct PRFAAS_KAFKA (host:port)",
        )
    finally:
        talkative.setLevel(level)
    return fine("kafka", f"{bootstrap} answers, {num_topics} topics")


async def _list_topics(bootstrap: str) -> int:
    async with asyncio.timeout(KAFKA_TIMEOUT_S):
        admin = AIOKafkaAdminClient(
            bootstrap_servers=bootstrap, client_id="prfaas-doctor", request_timeout_ms=int(KAFKA_TIMEOUT_S * 1000)
        )
        try:
            await admin.start()
            return len(await admin.list_topics())
        finally:
            await admin.close()


def kafka_of_gateway(client: GatewayClient) -> Finding:
    """Check the gateway's own connection to Kafka."""
    try:
        condition: dict[str, Any] | None = client.json("/readyz", also=UNAVAILABLE)["conditions"].get("kafka")
    except CommandFailed as failure:
        return failed("kafka of the gateway", str(failure), "look at the gateway's log")
    if condition is None:
        return fine("kafka of the gateway", "the gateway says nothing of it")
    if not condition["ok"]:
        return failed(
            "kafka of the gateway", condition["detail"], "start the broker, or correct PRFAAS_KAFKA of the gateway"
        )
    return fine("kafka of the gateway", "connected")


def clock(client: GatewayClient) -> Finding:
    """Check that the gateway's clock and this machine's agree: else their logs cannot be put in one order."""
    try:
        ahead_s = client.clock_ahead_s()
    except (CommandFailed, ValueError) as failure:
        return warned("clock", f"not known: {failure}", "look at the gateway")
    if ahead_s is None:
        return fine("clock", "the gateway does not tell its time")
    if abs(ahead_s) > MAX_SKEW_S:
        which = "ahead of" if ahead_s > 0 else "behind"
        return warned(
            "clock",
            f"the gateway's clock is {abs(ahead_s):.0f} s {which} this machine's",
            "synchronise both (chrony, systemd-timesyncd): logs and the ends of kept prefixes go by the clock",
        )
    return fine("clock", "the gateway's agrees with this machine's, to a second")


def versions(client: GatewayClient, installed: str) -> Finding:
    """Check that the gateway has the version that is installed here, and could read every event of its workers."""
    try:
        served = str(client.json("/version")["version"])
        skipped = skipped_events(client.text("/metrics"))
    except (CommandFailed, LookupError, ValueError) as failure:
        return warned("versions", f"not known: {failure}", "look at the gateway")
    if skipped:
        told = ", ".join(f"{count:.0f} on {topic}" for topic, count in sorted(skipped.items()))
        return warned(
            "versions",
            f"the gateway could not read events: {told}; a service of another version may send them",
            "install one version everywhere; the gateway's log has each event's reason",
        )
    if served != installed:
        return warned(
            "versions", f"the gateway is {served}, this command {installed}", "install one version everywhere"
        )
    return fine("versions", f"{served}; every event could be read")


def skipped_events(metrics: str) -> dict[str, float]:
    """Return how many events of each topic a process could not read, if any. Raises `ValueError`."""
    samples = (
        sample
        for family in text_string_to_metric_families(metrics)
        if family.name == SKIPPED
        for sample in family.samples
        if sample.name == f"{SKIPPED}_total"
    )
    return {sample.labels["topic"]: sample.value for sample in samples if sample.value}
