"""Files that others wrote: every wrong kind of file and value is an error of one line."""

import os

import pytest

from ember.records.errors import EmberError
from ember.records.foreign import inside, parse, read_object, shown

REMEDY = "Copy it again."


class BadFile(EmberError):
    pass


def fields(tmp_path, text: str | bytes):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_object(path, BadFile, REMEDY, limit=1 << 20)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        ("[1]", r"holds \[1\], which is not an object"),
        ("null", "not an object"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "Infinity is not a number"),
        ('{"a": 1e400}', "1e400 is too large"),
        (f'{{"a": 1{"0" * 5000}}}', "not valid JSON"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        (f'{{"a": {"[" * 900}{"]" * 900}}}', None),
        (" " * (1 << 20) + "{}", "has more than 1,048,576 bytes"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path, text, cause):
    if cause is None:
        with pytest.raises(BadFile, match="not a whole number"):
            fields(tmp_path, text).get("a", int)
        return
    with pytest.raises(BadFile, match=cause) as caught:
        fields(tmp_path, text)
    message = str(caught.value)
    assert message.splitlines()[1:] == [REMEDY]
    assert len(message) < 400
    assert str(tmp_path / "a.json") in message


@pytest.mark.parametrize(
    ("value", "kind", "bounds"),
    [
        ("true", int, {}),
        ("1.5", int, {}),
        ("1.0", int, {}),
        ('"1"', int, {}),
        ("[1]", float, {}),
        ("{}", list, {}),
        ("[]", dict, {}),
        ("1", bool, {}),
        ("1", str, {}),
        ("1", int, {"low": 2}),
        ("9", int, {"low": 2, "high": 8}),
        ("9", float, {"high": 8}),
        ("1" + "0" * 400, int, {}),
        ("1" + "0" * 400, float, {}),
        ('"x"', str, {"choices": ("y", "z")}),
        (f'"{"x" * 10_000}"', int, {}),
        ('"\\ud800\\n\\u0000"', int, {}),
    ],
)
def test_values_are_of_the_kind_and_within_the_bounds_asked_for(tmp_path, value, kind, bounds):
    with pytest.raises(BadFile, match=r"a\.json has 'key' = ") as caught:
        fields(tmp_path, f'{{"key": {value}}}').get("key", kind, **bounds)
    message = str(caught.value)
    assert message.splitlines()[1:] == [REMEDY]
    assert len(message) < 400
    message.encode()


def test_values_that_are_right_are_given(tmp_path):
    found = fields(
        tmp_path, '{"i": 3, "f": 2, "b": false, "n": null, "o": {"x": 1}, "l": [1, 2], "s": "ä"}'
    )
    assert (found.get("i", int, low=3, high=3), found.get("b", bool)) == (3, False)
    assert isinstance(found.get("f", float), float)
    assert found.get("n", int, 7) == found.get("absent", int, 7) == 7
    assert found.items_of("l", int, low=1) == [1, 2]
    assert found.items_of("absent", int) is None
    assert found.object("o").values_of(int) == {"x": 1}
    assert not found.object("absent")
    assert found.object("o").with_values({"y": 2}).values_of(int) == {"x": 1, "y": 2}
    with pytest.raises(BadFile, match=r"a\.json: 'o' lacks 'y'"):
        found.object("o").get("y", int)
    with pytest.raises(BadFile, match="lacks 'n'"):
        found.get("n", int)
    with pytest.raises(BadFile, match="'l' = 2, which is not from 0 to 1"):
        found.items_of("l", int, low=0, high=1)


def test_pipes_devices_and_folders_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, cause in (
        ("pipe", "is a pipe"),
        ("folder", "is a directory"),
        ("loop", "cannot be read"),
        ("absent", "is missing"),
        ("zero\0byte", "cannot be read"),
        ("x" * 300, "cannot be read"),
    ):
        with pytest.raises(BadFile, match=cause):
            read_object(tmp_path / name, BadFile, REMEDY)
    with pytest.raises(BadFile, match="is a pipe, a socket or a device"):
        read_object("/dev/zero", BadFile, REMEDY)


def test_names_stay_in_their_folder(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "away").symlink_to("../out")
    (tmp_path / "in" / "link").symlink_to("../out/file")
    folder = tmp_path / "in"
    for name in ("file", "sub/file", "./file", "link", "away"):
        assert inside(folder, name) is not None
    for name in ("", "/etc/passwd", "../out/file", "sub/../../x", "away/file", "a\0", "a\\b", ".."):
        assert inside(folder, name) is None


def test_messages_show_values_short():
    assert len(shown(parse('{"a": [' + "[1,2]," * 1000 + "1]}"))) < 200
    assert len(shown("x" * 10**6)) < 100
    assert "\n" not in shown("a\nb")
