"""Marks tests that need the extra `openvino`, which a development environment has."""

from importlib.util import find_spec

import pytest

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")
