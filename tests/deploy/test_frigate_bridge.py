"""The bridge from Frigate to Home Assistant: a real broker, a real service, and Frigate's HTTP API in a thread."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest

from prompt_store.store import Store
from service.demo.process import free_port
from tests.service.fakes import colour_bundle, picture
from tests.service.processes import eventually, serving

BRIDGE = Path(__file__).parents[2] / "deploy" / "frigate" / "bridge.py"
MOSQUITTO = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
ANSWERS = 3

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MOSQUITTO is None, reason="needs a broker: apt install mosquitto")]


class Broker:
    """A mosquitto process, and a client that keeps the last message of every topic."""

    def __init__(self, folder):
        self.port, self.messages = free_port(), {}
        self._config = folder / "mosquitto.conf"
        self._config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\n")
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe("#")
        self._client.on_message = lambda _client, _data, message: self._note(message)
        self.start()
        eventually(self._is_connected)
        self._client.loop_start()

    def start(self):
        self.process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stderr=subprocess.DEVNULL)

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def close(self):
        self._client.disconnect()
        self._client.loop_stop()
        self.stop()

    def publish(self, kind, event_id, camera="front_door", object_="person"):
        after = {"id": event_id, "camera": camera, "label": object_, "box": [1, 2, 3, 4]}
        message = json.dumps({"type": kind, "before": after, "after": after})
        self._client.publish("frigate/events", message, qos=1).wait_for_publish(10)

    def state(self, topic):
        return json.loads(self.messages.get(topic) or "null")

    def _is_connected(self):
        try:
            return self._client.connect("127.0.0.1", self.port) == mqtt.MQTT_ERR_SUCCESS
        except ConnectionRefusedError:
            return False

    def _note(self, message):
        self.messages[message.topic] = message.payload.decode()


@pytest.fixture
def broker(tmp_path):
    one = Broker(tmp_path)
    yield one
    one.close()


@pytest.fixture
def frigate():
    """Frigate's API; `snapshots` has the picture of each event, `requests` the paths that were requested."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            match = re.fullmatch(r"/api/events/([\w.-]+)/snapshot\.jpg\?crop=1", self.path)
            data = server.snapshots.get(match[1]) if match else None
            self.send_response(200 if data else 404)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.snapshots, server.requests = {}, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def service(tmp_path):
    store = Store.open(tmp_path / "store")
    store.add("paint", colour_bundle("paint"))
    store.activate("paint", 1)
    with serving(store) as (_, url):
        yield url


@pytest.fixture
def bridge(broker, frigate, service, tmp_path):
    log = tmp_path / "bridge.log"
    command = [sys.executable, str(BRIDGE), "--rule", "front_door/person=paint", "--mqtt-port", str(broker.port)]
    command += ["--frigate", f"http://127.0.0.1:{frigate.server_port}", "--server", service]
    command += ["--answers", str(ANSWERS), "--min-probability", "0"]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        eventually(lambda: broker.messages.get("caspl/available") == "online")
        yield process
        process.kill()


def updates(broker, frigate, event_id, colours):
    """One update of the event per colour, each seen by the bridge before the next."""
    for colour in colours:
        n_before = len(frigate.requests)
        frigate.snapshots[event_id] = picture(colour, kind="JPEG", size=(48, 64))
        broker.publish("update", event_id)
        eventually(lambda n=n_before: len(frigate.requests) > n)
        time.sleep(0.2)  # the answer of the service


def test_a_label_is_published_after_equal_answers_in_a_row_and_home_assistant_gets_a_sensor(bridge, broker, frigate):
    topic = "caspl/front_door/person"
    updates(broker, frigate, "1.5-abc", ["red", "red"])
    assert topic not in broker.messages
    updates(broker, frigate, "1.5-abc", ["blue", "red", "red"])
    assert topic not in broker.messages
    updates(broker, frigate, "1.5-abc", ["red"])
    eventually(lambda: topic in broker.messages)
    state = broker.state(topic)
    assert (state["label"], state["event"], state["domain"], state["version"]) == ("red", "1.5-abc", "paint", 1)
    config = broker.state("homeassistant/sensor/caspl/front_door_person/config")
    assert config["state_topic"] == config["json_attributes_topic"] == topic
    assert config["availability_topic"] == "caspl/available"
    assert config["unique_id"] == "caspl_front_door_person"


def test_every_tracked_object_has_its_own_votes(bridge, broker, frigate):
    updates(broker, frigate, "1-a", ["red", "red"])
    updates(broker, frigate, "2-b", ["red"])
    broker.publish("end", "1-a")
    updates(broker, frigate, "1-a", ["red", "red"])
    assert "caspl/front_door/person" not in broker.messages
    updates(broker, frigate, "1-a", ["red"])
    eventually(lambda: broker.state("caspl/front_door/person"))


def test_other_cameras_objects_and_foreign_messages_are_ignored(bridge, broker, frigate):
    broker.publish("update", "3-c", camera="garden")
    broker.publish("update", "4-d", object_="car")
    broker._client.publish("frigate/events", "not json").wait_for_publish(10)
    broker._client.publish("frigate/events", '{"type": "new"}').wait_for_publish(10)
    updates(broker, frigate, "5-e", ["blue"] * ANSWERS)
    eventually(lambda: broker.state("caspl/front_door/person"))
    assert all("5-e" in path for path in frigate.requests)
    assert bridge.poll() is None


def test_the_bridge_survives_a_restart_of_the_broker_and_missing_snapshots(bridge, broker, frigate):
    broker.publish("update", "6-f")  # no snapshot: 404
    eventually(lambda: frigate.requests)
    broker.stop()
    broker.messages.clear()
    broker.start()
    eventually(lambda: broker.messages.get("caspl/available") == "online")
    updates(broker, frigate, "7-g", ["red"] * ANSWERS)
    eventually(lambda: broker.state("caspl/front_door/person"))
    bridge.kill()
    bridge.wait()
    eventually(lambda: broker.messages["caspl/available"] == "offline")


def test_a_rule_of_another_form_is_refused():
    run = subprocess.run([sys.executable, str(BRIDGE), "--rule", "front_door"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "camera/object=domain" in " ".join(run.stderr.split())
