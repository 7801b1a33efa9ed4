"""The environment of llama.cpp."""

import pytest

from ember.records.provenance import source_root

LLAMA = source_root() / ".venv-llama" / "bin" / "python"


@pytest.fixture
def llama_python():
    """llama.cpp's interpreter."""
    if not (LLAMA.parent.parent / "installed").is_file():
        pytest.skip(f"{LLAMA} is not there: make peers")
    return LLAMA
