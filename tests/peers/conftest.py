"""The model that the tests of experiments use, and the environment of llama.cpp."""

import pytest
from tests.experiments.conftest import random_model as random_model

from ember.records.provenance import source_root

LLAMA = source_root() / ".venv-llama" / "bin" / "python"


@pytest.fixture
def llama_python():
    """llama.cpp's interpreter."""
    if not LLAMA.is_file():
        pytest.skip(f"{LLAMA} is not there: make peers")
    return LLAMA
