import pytest

from prompted_clip.model import PromptedClip
from service.engine.engine import Engine
from tests.tiny import tiny_backbone


@pytest.fixture
def engine():
    engine = Engine(PromptedClip(tiny_backbone()))
    yield engine
    engine.close()
