"""Corpora: the same everywhere, no text in two splits, clear messages for bad input."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.text import corpora
from ember.text.corpora import (
    HELD_OUT,
    SPLITS,
    BadCorpus,
    assign_splits,
    hub_dataset,
    local_files,
    package_sources,
    pydoc_topics,
    split_bytes,
    stdlib_sources,
    without_repeats,
)

SHORT = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module")
def small_stdlib():
    return stdlib_sources(max_bytes=600_000, seed=3)


def lines_of(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= 30}


def write_files(folder: Path, count: int = 6) -> None:
    for index in range(count):
        file = folder / "part" / f"text{index}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"Document {index}\n" + "".join(f"{index} line {n} " for n in range(50)))


def test_stdlib_is_deterministic_and_within_its_budget(small_stdlib):
    assert stdlib_sources(max_bytes=600_000, seed=3) == small_stdlib
    assert stdlib_sources(max_bytes=600_000, seed=4) != small_stdlib
    total = sum(split_bytes(small_stdlib, split) for split in SPLITS)
    assert 500_000 < total <= 600_000


def test_stdlib_ids_hold_no_paths_and_no_foreign_code(small_stdlib):
    for doc in small_stdlib:
        assert doc.doc_id.startswith("stdlib/")
        assert not {"test", "tests", "site-packages", "idlelib", "lib2to3"} & set(
            doc.doc_id.split("/")
        )


def test_stdlib_does_not_depend_on_tests_or_installed_packages(tmp_path, monkeypatch):
    def lay(root: Path, extras: bool) -> Path:
        for name in ("json/decoder.py", "heapq.py", "queue.py", "asyncio/base_events.py"):
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'"""The module {name}."""\n' * 9)
        if extras:
            for name in (
                "test/test_heapq.py",
                "unittest/test/support.py",
                "site-packages/numpy/core.py",
                "idlelib/editor.py",
                "_sysconfigdata__linux.py",
                "json/__pycache__/decoder.cpython-311.py",
            ):
                file = root / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"'something else: {root} {name}'\n" * 5)
        return root

    found = []
    for name, extras in (("plain", False), ("full", True)):
        root = lay(tmp_path / name, extras)
        monkeypatch.setattr(corpora.sysconfig, "get_path", lambda _, root=root: str(root))
        found.append(stdlib_sources())
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_packages_are_those_that_are_named_without_their_tests(tmp_path, monkeypatch):
    def lay(name: str, recorded: bool = True) -> None:
        about = tmp_path / f"{name}-1.0.dist-info"
        files = [f"{name}/{part}.py" for part in ("core", "more", "rest", "tests/test_core")]
        for file in [*files, f"{name}/data.json", f"{about.name}/METADATA"]:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{file}"
            )
        if recorded:
            (about / "RECORD").write_text("".join(f"{file},,\n" for file in files))

    for name in ("first", "second"):
        lay(name)
    lay("unlisted", recorded=False)
    monkeypatch.syspath_prepend(tmp_path)
    found = package_sources(["first", "second"])
    assert [doc.doc_id for doc in found] == [
        f"packages/{name}/{part}.py"
        for name in ("first", "second")
        for part in ("core", "more", "rest")
    ]
    with pytest.raises(BadCorpus, match="'third' is not installed"):
        package_sources(["first", "third"])
    with pytest.raises(BadCorpus, match="'unlisted' was installed without a list"):
        package_sources(["unlisted"])
    (tmp_path / "second" / "core.py").unlink()
    with pytest.raises(BadCorpus, match=r"second/core\.py cannot be read"):
        package_sources(["first", "second"])


def test_every_split_has_text_of_about_the_asked_share(small_stdlib):
    total = sum(split_bytes(small_stdlib, split) for split in SPLITS)
    for split in ("validation", "test"):
        assert 0.5 * HELD_OUT < split_bytes(small_stdlib, split) / total < 1.2 * HELD_OUT


def test_no_leakage_between_splits():
    topics = pydoc_topics()
    trained = set().union(*(lines_of(doc.text) for doc in topics if doc.split == "train"))
    held_out = [doc for doc in topics if doc.split != "train"]
    assert {doc.split for doc in held_out} == {"validation", "test"}
    for doc in held_out:
        lines = lines_of(doc.text)
        assert len(lines & trained) <= 0.1 * len(lines), doc.doc_id
    ids = [doc.doc_id for doc in topics]
    assert len(ids) == len(set(ids))
    assert len({doc.sha256 for doc in topics}) == len(topics)


def test_a_chapter_repeated_inside_a_longer_text_is_dropped():
    chapter = "".join(f"A line of thirty characters, no. {n}\n" for n in range(20))
    book = chapter + "".join(f"Another of thirty characters, no. {n}\n" for n in range(60))
    other = "".join(f"Something else entirely, line no. {n}\n" for n in range(10))
    kept = without_repeats({"chapter": chapter, "book": book, "other": other, "copy": other})
    assert set(kept) == {"book", "copy"}


@SHORT
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=300), min_size=3, max_size=30
    )
)
def test_splits_cover_every_text_and_none_is_empty(texts):
    splits = assign_splits(texts)
    assert set(splits) == set(texts)
    assert set(splits.values()) == set(SPLITS)
    assert splits == assign_splits(dict(reversed(texts.items())))


def test_local_files_do_not_depend_on_where_they_lie(tmp_path):
    write_files(tmp_path / "here")
    write_files(tmp_path / "there" / "below")
    here = local_files([tmp_path / "here"])
    assert here == local_files([str(tmp_path / "there" / "below")])
    assert {doc.doc_id for doc in here} == {f"files/part/text{n}.txt" for n in range(6)}
    globbed = local_files([str(tmp_path / "here" / "**" / "*.txt")])
    assert globbed == here


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, b"", "no text file at"),
        ("latin.txt", "na\xefve".encode("latin-1"), "not UTF-8 text"),
        ("one.txt", b"only one document", "at least three"),
        ("empty.txt", b"  \n", "0 documents"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = tmp_path / (name or "missing.txt")
    if name:
        path.write_bytes(content)
    with pytest.raises(BadCorpus, match=message):
        local_files([path])


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(folder)
    with pytest.raises(BadCorpus, match=r"called 'same\.txt'"):
        local_files([tmp_path / "a" / "same.txt", tmp_path / "b" / "same.txt"])


def test_budget_too_small_says_what_to_raise():
    with pytest.raises(BadCorpus, match="raise max_bytes"):
        pydoc_topics(max_bytes=300)


def test_missing_pydoc_topics_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(BadCorpus, match="libpython3-stdlib"):
        pydoc_topics()


def test_missing_datasets_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadCorpus, match="pip install"):
        hub_dataset("some/set")


class TestHub:
    """A local copy stands in for the hub; the network is off."""

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch, tmp_path):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    @pytest.fixture
    def local_copy(self, tmp_path):
        folder = tmp_path / "prose"
        folder.mkdir()
        rows = [{"text": f"Row {n}: {'word ' * n}end", "year": n} for n in range(20)]
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return folder

    def test_local_copy_is_read(self, local_copy):
        documents = hub_dataset(str(local_copy))
        assert len(documents) == 20
        assert documents[0].doc_id == "hub/prose/train/0000000"
        assert documents == hub_dataset(str(local_copy))

    def test_lines_of_wikitext_become_articles(self, tmp_path):
        lines = []
        for name in ("Boulter", "Du Fu", "Kiss You", "Gold"):
            lines += ["", f" = {name} = \n", "", f" {name} was {'long ' * 9}\n", " = = Life = = \n"]
        (tmp_path / "test.jsonl").write_text("\n".join(json.dumps({"text": x}) for x in lines))
        found = hub_dataset(str(tmp_path), split="test", begins="^ = [^=]+ = $")
        assert len(found) == 4
        assert found[1].text.startswith(" = Du Fu = \n Du Fu was long")
        assert found[1].text.endswith(" = = Life = = \n")

    def test_books_of_pg19_are_documents(self, tmp_path):
        rows = [
            {
                "short_book_title": f"Book {n} by A. Author",
                "publication_date": 1900 + n,
                "url": f"http://www.gutenberg.org/ebooks/{n}",
                "text": f"CHAPTER {n}\n\n" + f"Word {n} of it.\n" * 9,
            }
            for n in range(5)
        ]
        (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
        found = hub_dataset(str(tmp_path), split="test")
        assert [doc.text for doc in found] == [row["text"] for row in rows]

    def test_only_as_much_as_asked_is_read(self, local_copy):
        documents = hub_dataset(str(local_copy), max_bytes=200)
        assert 3 <= len(documents) < 20

    def test_wrong_column_lists_those_there_are(self, local_copy):
        with pytest.raises(BadCorpus, match="text, year"):
            hub_dataset(str(local_copy), column="body")

    def test_unknown_data_set_names_id_and_remedy(self):
        with pytest.raises(BadCorpus, match=r"(?s)nobody/nothing.*local copy"):
            hub_dataset("nobody/nothing")
