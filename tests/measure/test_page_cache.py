"""Files in and out of the page cache."""

import pytest

from ember.measure.page_cache import drop, read_through, resident_share


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


def test_what_was_read_is_resident_and_what_was_dropped_may_not_be(file):
    assert read_through([file, file]) == 2 * file.stat().st_size
    share = resident_share([file])
    if share is None:
        pytest.skip("this system does not tell what is in its page cache")
    assert share == 1.0
    drop([file])
    assert 0.0 <= resident_share([file]) <= 1.0  # in memory only, a file cannot be dropped
    assert file.read_bytes() == bytes(range(256)) * 4096


def test_an_empty_file_has_no_share(tmp_path):
    (tmp_path / "empty").touch()
    assert resident_share([tmp_path / "empty"]) is None
    assert read_through([tmp_path / "empty"]) == 0
