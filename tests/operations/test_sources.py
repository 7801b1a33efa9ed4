"""What is outside of the workflow counts by what it holds."""

from types import SimpleNamespace

import pytest

from ember.operations import sources
from ember.text.corpora import BadCorpus


def test_of_packages_the_versions_count(monkeypatch):
    settings = {"source": "packages", "packages": ["torch", "pandas"]}
    versions = {"torch": "2.13.0", "pandas": "3.0"}

    def content() -> str | None:
        monkeypatch.setattr(
            sources, "installed", lambda name: SimpleNamespace(files=[], version=versions[name])
        )
        return sources.content_sha256(settings)

    before = content()
    assert before == content()
    versions["pandas"] = "3.1"
    assert before != content()


def test_a_package_that_is_missing_is_named():
    with pytest.raises(BadCorpus, match="'no-such-package' is not installed"):
        sources.content_sha256({"source": "packages", "packages": ["no-such-package"]})


def test_files_count_by_name_and_content(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    settings = {"source": "files", "paths": [str(tmp_path)]}
    before = sources.content_sha256(settings)
    (tmp_path / "a.txt").touch()
    assert sources.content_sha256(settings) == before
    (tmp_path / "a.txt").write_text("two")
    assert sources.content_sha256(settings) != before
    assert sources.content_sha256({"source": "stdlib"}) is None
