from pathlib import Path

import pytest

from service.configuration.environment import load_settings, refuse_unknown
from service.errors import SettingsError
from service.settings import Settings


def test_options_win_over_variables_and_variables_over_defaults(monkeypatch):
    monkeypatch.setenv("CASPL_PORT", "9000")
    monkeypatch.setenv("CASPL_MAX_IMAGES", "3")
    settings = load_settings(port=9001, host=None)
    assert (settings.port, settings.max_images, settings.host) == (9001, 3, "127.0.0.1")


def test_a_mistyped_variable_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("CASPL_MAX_IMAGEZ", "3")
    with pytest.raises(SettingsError, match="CASPL_MAX_IMAGEZ"):
        load_settings()


def test_what_kubernetes_says_about_a_service_of_our_name_is_passed_over(monkeypatch):
    links = {
        "CASPL_SERVICE_HOST": "10.0.0.7",
        "CASPL_SERVE_SERVICE_HOST": "10.0.0.7",
        "CASPL_SERVE_SERVICE_PORT": "8000",
        "CASPL_SERVE_SERVICE_PORT_HTTP": "8000",
        "CASPL_PORT": "tcp://10.0.0.7:8000",
        "CASPL_SERVE_PORT": "tcp://10.0.0.7:8000",
        "CASPL_PORT_8000_TCP": "tcp://10.0.0.7:8000",
        "CASPL_SERVE_PORT_8000_TCP_ADDR": "10.0.0.7",
        "CASPL_SERVE_PORT_53_UDP_PROTO": "udp",
    }
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert load_settings().port == 8000
    assert load_settings(port=9001).port == 9001


@pytest.mark.parametrize(
    ("name", "value"), [("CASPL_SERVE_PORT", "8001"), ("CASPL_PORT_TCP", "1"), ("CASPL_SERVICE_HOSTS", "a")]
)
def test_what_only_looks_like_a_service_link_is_refused(name, value):
    with pytest.raises(SettingsError, match=name):
        refuse_unknown({name: value})


def test_the_variables_of_the_client_are_no_mistake():
    refuse_unknown({"CASPL_URL": "x", "CASPL_API_KEY": "y", "PATH": "/bin", "CASPL_STORE": "z"})


@pytest.mark.parametrize(
    "given",
    [
        {"port": -1},
        {"device": "tpu"},
        {"dtype": "int4"},
        {"default_timeout_s": 60.0},
        {"max_images": 0},
        {"stuck_after_s": 0.0},
    ],
)
def test_a_value_out_of_range_is_refused(given):
    with pytest.raises(SettingsError, match=next(iter(given))) as caught:
        load_settings(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104
        ("192.168.1.5", False),
        ("box", False),
    ],
)
def test_only_loopback_is_loopback(host, is_loopback):
    assert Settings(host=host).is_loopback is is_loopback


@pytest.mark.parametrize("queue", ["max_queued_rows", "max_decoding_images"])
def test_a_full_request_must_fit_into_each_queue(queue):
    assert getattr(load_settings(max_images=20, **{queue: 20}), queue) == 20
    with pytest.raises(SettingsError, match=f"max_images must not exceed {queue}"):
        load_settings(max_images=20, **{queue: 19})


@pytest.mark.parametrize("others", [{"web_workers": 2}, {"device": "cpu"}])
def test_decoding_on_the_gpu_needs_the_process_that_has_one(others):
    assert load_settings(preprocess="gpu").preprocess == "gpu"
    with pytest.raises(SettingsError, match="requires a CUDA device and web_workers=0"):
        load_settings(preprocess="gpu", **others)


def test_resident_domains_are_names_separated_by_commas_and_take_half_of_the_bank():
    settings = load_settings(resident_domains=" retail, night-sky,retail,", bank_slots=5)
    assert settings.kept_domains == {"retail", "night-sky"}
    assert settings.kept_slots == 2
    assert (Settings().kept_domains, Settings().kept_slots) == (frozenset(), 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resident_domains": "retail; night"}, "'retail; night' is not a valid domain name"),
        ({"resident_domains": "a,b,c", "bank_slots": 5}, "has 3 domains, more than half of bank_slots"),
        ({"bank_slots": 0}, "bank_slots"),
    ],
)
def test_resident_domains_that_cannot_be_are_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(**given)


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_another_process_gets_the_same_settings_whatever_its_environment_says(monkeypatch):
    chosen = Settings(max_images=5, web_workers=2, store=Path("elsewhere"))
    monkeypatch.setenv("CASPL_MAX_IMAGES", "3")
    monkeypatch.setenv("CASPL_KEYS_FILE", "stray.json")
    assert Settings.model_validate_json(chosen.model_dump_json()) == chosen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backend": "torch", "dtype": "int8"}, "dtype int8 requires backend openvino"),
        ({"backend": "openvino", "dtype": "float16"}, "not float16"),
        ({"backend": "openvino", "device": "cuda"}, "use device cpu or auto"),
        ({"dtype": "int8", "device": "cuda:1"}, "use device cpu or auto"),
    ],
)
def test_a_backend_that_does_not_support_dtype_or_device_is_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        load_settings(**given)
