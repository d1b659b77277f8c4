"""Classifies the objects that Frigate tracks, and publishes stable answers over MQTT for Home Assistant.

For every event of a matching camera and object the bridge fetches Frigate's cropped snapshot, classifies it with a
CasPL domain, and publishes a label once it was the answer several times in a row. Frigate, the broker and the service
may restart at any time.
"""

import json
import logging
import queue
import re
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Annotated

import httpx
import paho.mqtt.client as mqtt
import typer

import caspl

logger = logging.getLogger("bridge")

MAX_EVENTS = 1000
MAX_WAITING = 64
SNAPSHOT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Rule:
    """Objects of a camera, and the domain that classifies them; `*` stands for any camera or object."""

    camera: str
    object: str
    domain: str

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read `camera/object=domain`.

        Raises:
            BadParameter: another form.
        """
        match = re.fullmatch(r"([\w.*-]+)/([\w.*-]+)=([a-z0-9-]+)", text)
        if match is None:
            msg = f"expected camera/object=domain, such as front_door/person=uniforms, found {text!r}"
            raise typer.BadParameter(msg)
        return cls(*match.groups())

    def matches(self, camera: str, object_: str) -> bool:
        """Whether the rule covers an object of a camera."""
        return self.camera in {"*", camera} and self.object in {"*", object_}


@dataclass(frozen=True)
class Event:
    """A tracked object, as in Frigate's topic `events`."""

    id: str
    camera: str
    object: str
    domain: str


@dataclass
class Votes:
    """The last answers for one tracked object."""

    labels: deque[str | None]
    published: str | None = None

    def add(self, label: str | None) -> bool:
        """Add an answer; True if it is now unanimous and was not published yet."""
        self.labels.append(label)
        is_unanimous = len(self.labels) == self.labels.maxlen and set(self.labels) == {label}
        if label is None or not is_unanimous or label == self.published:
            return False
        self.published = label
        return True


@dataclass
class Bridge:
    """Connects a broker, Frigate's HTTP API and a CasPL server.

    Attributes:
        rules: the first one that matches an event is used.
        answers: equal answers in a row before a label is published.
        min_probability: less probable answers count as no answer.
        abstain: abstention rate, for domains that were fitted to examples.
    """

    broker: mqtt.Client
    frigate: httpx.Client
    server: caspl.Client
    rules: list[Rule]
    prefix: str = "frigate"
    answers: int = 3
    min_probability: float = 0.5
    abstain: float | None = None
    _votes: OrderedDict[str, Votes] = field(default_factory=OrderedDict)
    _announced: set[tuple[str, str]] = field(default_factory=set)
    _waiting: "queue.Queue[Event]" = field(default_factory=lambda: queue.Queue(MAX_WAITING))

    def connect(self, host: str, port: int) -> None:
        """Connect to the broker, and again whenever the connection is lost."""
        self.broker.will_set("caspl/available", "offline", qos=1, retain=True)
        self.broker.on_connect = self._on_connect
        self.broker.on_message = self._on_message
        self.broker.connect_async(host, port)
        self.broker.loop_start()

    def run(self, is_over: threading.Event) -> None:
        """Classify events until `is_over` is set."""
        while not is_over.is_set():
            try:
                event = self._waiting.get(timeout=0.5)
            except queue.Empty:
                continue
            try:
                self._classify(event)
            except (httpx.HTTPError, caspl.CasplError) as error:
                logger.warning("event %s of %s: %s", event.id, event.camera, error)
        self.broker.publish("caspl/available", "offline", qos=1, retain=True).wait_for_publish(5)
        self.broker.loop_stop()

    def _on_connect(self, broker: mqtt.Client, *_: object) -> None:
        broker.subscribe(f"{self.prefix}/events", qos=1)
        broker.publish("caspl/available", "online", qos=1, retain=True)
        logger.info("connected to the broker")

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        try:
            body = json.loads(message.payload)
            after, kind = body["after"], body["type"]
            event_id, camera, object_ = str(after["id"]), str(after["camera"]), str(after["label"])
        except (ValueError, KeyError, TypeError):
            logger.warning("a message in %s is not an event of Frigate", message.topic)
            return
        if kind == "end":
            self._votes.pop(event_id, None)
            return
        rule = next((one for one in self.rules if one.matches(camera, object_)), None)
        if rule is None:
            return
        try:
            self._waiting.put_nowait(Event(event_id, camera, object_, rule.domain))
        except queue.Full:
            logger.warning("%d events are waiting: an update of %s was dropped", MAX_WAITING, event_id)

    def _classify(self, event: Event) -> None:
        snapshot = self.frigate.get(f"/api/events/{event.id}/snapshot.jpg", params={"crop": 1})
        if snapshot.status_code == httpx.codes.NOT_FOUND:
            return  # the object is gone, or Frigate keeps no snapshot of it
        snapshot.raise_for_status()
        (found,) = self.server.classify(snapshot.content, domain=event.domain, abstain=self.abstain)
        if found.error is not None:
            raise found.error
        best = found.predictions[0]
        is_certain = best.probability >= self.min_probability and not found.abstained
        votes = self._votes.setdefault(event.id, Votes(deque(maxlen=self.answers)))
        self._votes.move_to_end(event.id)
        if len(self._votes) > MAX_EVENTS:
            self._votes.popitem(last=False)
        if votes.add(best.label if is_certain else None):
            self._publish(event, found)

    def _publish(self, event: Event, found: caspl.Classification) -> None:
        topic = f"caspl/{event.camera}/{event.object}"
        if (event.camera, event.object) not in self._announced:
            self._announced.add((event.camera, event.object))
            self._announce(event, topic)
        best = found.predictions[0]
        state = {
            "label": best.label,
            "probability": round(best.probability, 4),
            "camera": event.camera,
            "object": event.object,
            "event": event.id,
            "domain": found.domain or event.domain,
            "version": found.version,
        }
        self.broker.publish(topic, json.dumps(state), qos=1, retain=True)
        logger.info("%s: %s is %s", event.camera, event.object, best.label)

    def _announce(self, event: Event, topic: str) -> None:
        """Publish the configuration from which Home Assistant creates a sensor."""
        name = re.sub(r"[^a-zA-Z0-9_-]", "_", f"{event.camera}_{event.object}")
        config = {
            "name": f"{event.camera} {event.object}",
            "unique_id": f"caspl_{name}",
            "state_topic": topic,
            "value_template": "{{ value_json.label }}",
            "json_attributes_topic": topic,
            "availability_topic": "caspl/available",
            "device": {"identifiers": ["caspl_bridge"], "name": "CasPL", "manufacturer": "CasPL Serve"},
        }
        self.broker.publish(f"homeassistant/sensor/caspl/{name}/config", json.dumps(config), qos=1, retain=True)


def main(
    rule: Annotated[list[str], typer.Option(help="camera/object=domain; * matches any; repeat it")],
    mqtt_host: Annotated[str, typer.Option(envvar="MQTT_HOST")] = "localhost",
    mqtt_port: Annotated[int, typer.Option(envvar="MQTT_PORT")] = 1883,
    mqtt_user: Annotated[str | None, typer.Option(envvar="MQTT_USER")] = None,
    mqtt_password: Annotated[str | None, typer.Option(envvar="MQTT_PASSWORD")] = None,
    frigate: Annotated[str, typer.Option(envvar="FRIGATE_URL", help="Frigate's HTTP API")] = "http://localhost:5000",
    server: Annotated[str, typer.Option(envvar="CASPL_URL")] = "http://localhost:8000",
    key: Annotated[str | None, typer.Option(envvar="CASPL_API_KEY")] = None,
    prefix: Annotated[str, typer.Option(help="Frigate's topic_prefix")] = "frigate",
    answers: Annotated[int, typer.Option(min=1, help="equal answers in a row before a label is published")] = 3,
    min_probability: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    abstain: Annotated[float | None, typer.Option(help="abstention rate, such as 0.05, for fitted domains")] = None,
) -> None:
    """Classify the objects that Frigate tracks, and publish stable answers for Home Assistant."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    broker = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="caspl-bridge")
    if mqtt_user:
        broker.username_pw_set(mqtt_user, mqtt_password)
    with (
        httpx.Client(base_url=frigate, timeout=SNAPSHOT_TIMEOUT_S) as frigate_api,
        caspl.Client(server, api_key=key) as client,
    ):
        bridge = Bridge(
            broker,
            frigate_api,
            client,
            [Rule.parse(text) for text in rule],
            prefix=prefix,
            answers=answers,
            min_probability=min_probability,
            abstain=abstain,
        )
        bridge.connect(mqtt_host, mqtt_port)
        try:
            bridge.run(threading.Event())
        except KeyboardInterrupt:
            logger.info("stopped")


if __name__ == "__main__":
    typer.run(main)
