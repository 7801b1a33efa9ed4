"""Tables as people read them: units in headers, everything escaped, nothing lost in CSV."""

import csv
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember.records.render import header, latex, number, render
from ember.records.schema import Column, Schema

AWKWARD = Schema(
    "awkward",
    "100 % of R&D_costs {in} $",
    (
        Column("name", "str", meaning="a_name with | and #"),
        Column("rank", "int", nullable=True),
        Column("equal", "bool", nullable=True),
        Column("decode_ms_median", "float", "ms", nullable=True),
        Column("tokens", "list[int]"),
    ),
)
ROWS = [
    dict(zip(AWKWARD.names, ["a|b & <c>_~^\\", 8, True, 0.1234567, [1, 2]], strict=True)),
    dict(zip(AWKWARD.names, ['x\ny, "z"', None, None, None, []], strict=True)),
]


@pytest.mark.parametrize(
    ("name", "unit", "expected"),
    [
        ("prefill_ms_median", "ms", "prefill median (ms)"),
        ("prefill_ms", "ms", "prefill (ms)"),
        ("ms", "ms", "ms (ms)"),
        ("tokens_per_s", "tokens/s", "tokens per s (tokens/s)"),
        ("decode_tokens_per_s", "tokens/s", "decode (tokens/s)"),
        ("context", "tokens", "context (tokens)"),
        ("prompt_tokens", "tokens", "prompt (tokens)"),
        ("mode", "", "mode"),
        ("cumulative_s", "s", "cumulative (s)"),
    ],
)
def test_headers(name, unit, expected):
    assert header(Column(name, "float", unit)) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.123456, "0.1235"),
        (12.3456, "12.35"),
        (1234.56, "1235"),
        (1234567.8, "1234568"),
        (-0.5, "-0.5000"),
        (1e-12, "1.000e-12"),
        (3e30, "3.000e+30"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e300, 1e300))
def test_numbers_keep_four_digits(value):
    assert float(number(value)) == pytest.approx(value, rel=6e-4, abs=1e-300)


def test_three_files_stand_beside_the_table(tmp_path):
    files = render(ROWS, AWKWARD, tmp_path / "p1_t")
    assert [file.name for file in files] == ["p1_t.csv", "p1_t.md", "p1_t.tex"]
    assert all(file.is_file() for file in files)


def test_csv_is_exact(tmp_path):
    path, _, _ = render(ROWS, AWKWARD, tmp_path / "t")
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["name", "rank", "equal", "decode_ms_median", "tokens"],
            ["a|b & <c>_~^\\", "8", "True", "0.1234567", "1 2"],
            ['x\ny, "z"', "", "", "", ""],
        ]


def test_csv_names_units_that_the_name_does_not(tmp_path, times, rows):
    path, _, _ = render(rows, times, tmp_path / "t")
    assert path.read_text().splitlines()[0] == "context (tokens),prefill_ms,note,evidence"


def test_markdown(tmp_path, times, rows):
    provenance = {"rule": "fit", "config": {"scale": "smoke"}}
    _, path, _ = render(rows, times, tmp_path / "t", provenance)
    lines = path.read_text().splitlines()
    assert lines[0] == "**times.** Prefill times of a toy. Scale: smoke."
    assert lines[2:6] == [
        "| context (tokens) | prefill (ms) | note | evidence |",
        "| ---: | ---: | --- | --- |",
        "| 512 | 12.25 | – | measured |",
        "| 1024 | 30.50 | warm | measured |",
    ]
    assert "- context (tokens): prompt length" in lines
    assert lines[-1] == "From t.parquet, made by rule fit; `ember why` tells where it comes from."


def test_markdown_escapes(tmp_path):
    _, path, _ = render(ROWS, AWKWARD, tmp_path / "t")
    rows = [line for line in path.read_text().splitlines() if line.startswith("|")]
    assert rows[2] == r"| a\|b & \<c\>\_~^\\ | 8 | yes | 0.1235 | 1 2 |"
    assert len(rows) == 4


def test_latex_escapes_everything(tmp_path):
    assert latex("a_b & 5 % $x^2$ {~}\\ #") == (
        r"a\_b \& 5 \% \$x\textasciicircum{}2\$ \{\textasciitilde{}\}\textbackslash{} \#"
    )
    _, _, path = render(ROWS, AWKWARD, tmp_path / "p1_t")
    text = path.read_text()
    assert r"\caption{100 \% of R\&D\_costs \{in\} \$.}" in text
    assert r"\label{tab:p1-t}" in text
    assert r"\begin{tabular}{lrlrl}" in text
    assert r"a\textbar{}b \& \textless{}c\textgreater{}\_" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [line.replace(r"\&", "").count("&") for line in body] == [4, 4, 4]


def test_latex_compiles_where_there_is_latex(tmp_path):
    _, _, path = render(ROWS, AWKWARD, tmp_path / "t")
    compiler = shutil.which("pdflatex")
    if compiler is None:
        # No compiler: the braces must balance and the environments close.
        text = path.read_text().replace(r"\{", "").replace(r"\}", "")
        assert text.count("{") == text.count("}")
        assert text.count(r"\begin{") == text.count(r"\end{") == 2
        return
    document = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}"
        + path.read_text()
        + r"\end{document}"
    )
    (tmp_path / "d.tex").write_text(document)
    subprocess.run(
        [compiler, "-halt-on-error", "-interaction=batchmode", "d.tex"], cwd=tmp_path, check=True
    )


def test_an_empty_table_has_its_headers(tmp_path, times):
    files = render([], times, tmp_path / "t")
    assert files[0].read_text() == "context (tokens),prefill_ms,note,evidence\n"
    assert "| context (tokens) | prefill (ms) |" in files[1].read_text()
