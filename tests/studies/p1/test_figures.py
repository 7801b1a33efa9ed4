"""Figures: every number of a caption is in the table, and files come whole with provenance."""

import pandas as pd
import pytest
from PIL import Image

from ember.records.provenance import read_figure_provenance
from ember.studies.p1.frameworks import figure as p1_frameworks
from ember.studies.p1.frameworks.tables import FRAMEWORKS
from ember.studies.p1.loading import figure as p1_loading
from ember.studies.p1.loading.tables import FIRST_TOKEN, LOADING
from ember.studies.p1.pipeline.figure import draw_gantt, draw_splits
from ember.studies.p1.pipeline.tables import PIPELINE, PIPELINE_EVENTS
from ember.studies.p1.prefix import figure as p1_sec44
from ember.studies.p1.prefix.tables import PREFIX_LOSSES, PREFIX_SAVINGS
from ember.studies.p1.profile import figure as p1_fig2
from ember.studies.p1.profile.tables import PREFILL_SHARE
from ember.studies.p1.rollout.tables import point_name
from ember.studies.style import PAGE, save, small_print
from tests.rows import frame

ABOUT = {"model": "policy", "weights": "trained", "device": "cpu", "dtype": "float32"}


OPERATING = {"prompts": 4, "candidates": 8, "rows": 32, "prefix": 0}
OPERATING |= {"context": 1024, "generation": 128}


def share_table() -> pd.DataFrame:
    """One rollout at 512 and 1024, after which 64 or 128 tokens; batches of 16 and 32 rows, these
    also at 1024/64."""
    points = [(rows, c, 128) for rows in (1, 16, 32) for c in (512, 1024)]
    points += [(1, 512, 64), (1, 1024, 64), (32, 1024, 64)]
    rows = []
    for batch, context, generation in points:
        share = context / (context + 64 * generation / (batch + 8))
        call = OPERATING | {"rows": batch, "context": context, "generation": generation}
        single = {"point": f"single-{context}-{generation}", "mode": "single"}
        rows.append(
            ABOUT
            | {"mode": "batched", "prompts": 4, "candidates": 8, "point": point_name(call)}
            | {"batch": batch, "context": context, "generation": generation, "n": 5}
            | {"prefill_share_median": share, "prefill_share_min": share - 0.01}
            | {"prefill_share_max": share + 0.02}
            | (single if batch == 1 else {})
        )
    # A batch of one context, and another call, which is not the loop's.
    rows.append(rows[2] | {"mode": "batched", "batch": 8, "point": "4x8 in 8, 512/128"})
    rows.append(rows[-1] | {"candidates": 1, "batch": 4, "point": "4x1 in 4, 1024/128"})
    skipped = {"mode": "two_stage_overlap", "status": "skipped", "reason": "one device", "n": 0}
    rows.append(ABOUT | skipped | {"context": 512, "generation": 64})
    return frame(PREFILL_SHARE, rows)


def savings_table() -> pd.DataFrame:
    rows = [
        ABOUT
        | {
            "prompt_tokens": prompt,
            "prefix_tokens": int(prompt * fraction),
            "documents": 12,
            "savings": 0.9 * fraction,
            "savings_low": 0.9 * fraction - 0.02,
            "savings_high": 0.9 * fraction + 0.01,
            "speedup": 1 / (1 - 0.9 * fraction),
            "expected_with_attention": 0.95 * fraction,
            "ratio_to_operations": 0.9 / 0.95,
            "ratio_low": (0.9 * fraction - 0.02) / (0.95 * fraction),
            "ratio_high": (0.9 * fraction + 0.01) / (0.95 * fraction),
            "max_logit_diff": 2.3e-5,
            "float32_documents": 4,
            "float32_tokens_equal_share": 1.0,
            "float32_max_logit_diff": 1.1e-5,
        }
        for prompt in (512, 1024)
        for fraction in (0.25, 0.5, 0.75)
    ]
    return frame(PREFIX_SAVINGS, rows)


def losses_table() -> pd.DataFrame:
    times = {"uncached": 10.0, "operations": -4.7, "products": 0.6, "attention": 0.4}
    times |= {"lookup": 0.2, "store": 0.1, "cached": 6.6}
    return frame(
        PREFIX_LOSSES,
        [
            ABOUT
            | {"prompt_tokens": 1024, "prefix_tokens": 512, "documents": 12, "step": step}
            | {"part": part, "ms": ms, "low": ms - 0.1, "high": ms + 0.1}
            for step, (part, ms) in enumerate(times.items())
        ],
    )


def test_fig2_has_a_curve_a_batch_size_and_says_what_was_not_measured():
    figure, caption = p1_fig2.draw(share_table(), OPERATING, "tiny")
    [axes] = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        *("one rollout", "16 rows", "32 rows", "64 generated")
    ]
    assert "the share is 83.3 %, of one rollout of these lengths 52.9 %" in caption
    assert "512/128 71.4 %; 1024/64 90.9 %; 1024/128 83.3 %" in caption
    assert "least to greatest of n = 5 runs" in caption
    assert "two_stage_overlap (one device)" in caption
    assert "scale tiny" in caption


def test_fig2_says_what_two_stages_take():
    share = share_table()
    share["total_ms_median"] = 100.0
    staged = share[share["mode"] == "single"].assign(mode="two_stage_serial")
    staged["total_ms_median"] = [110.0, 120.0, 130.0, 140.0]
    _, caption = p1_fig2.draw(pd.concat([share, staged]), OPERATING, "tiny")
    assert "Two pipeline stages take 1.10 to 1.40 times as long without." in caption


def pipeline_table(**changes) -> pd.DataFrame:
    rows = []
    for mode in ("overlap", "no_overlap", "single"):
        for first in (1, 2) if mode != "single" else (3,):
            speed = 100.0 * first if mode == "overlap" else 80.0
            rows.append(
                ABOUT
                | {
                    "point": f"{first}+{3 - first}-{mode}",
                    "split": f"{first}+{3 - first}",
                    "first_layers": first,
                    "mode": mode,
                    "sequences": 4,
                    "n": 5,
                    "tokens_per_s_median": speed,
                    "tokens_per_s_min": speed - 1,
                    "tokens_per_s_max": speed + 2,
                    "predicted_tokens_per_s": None if mode == "single" else 1.1 * speed,
                    "predicted_best_split": "2+1" if mode == "overlap" else None,
                    "total_ms_median": 100.0,
                    "busy_first_ms_median": 30.0 * first,
                    "busy_last_ms_median": 90.0 - 30.0 * first,
                    "bubble_share_median": 0.55 if mode == "overlap" else 0.625,
                    "standing": "best" if (mode, first) == ("overlap", 2) else "slower",
                }
                | changes
            )
    return frame(PIPELINE, rows)


def events_table() -> pd.DataFrame:
    rows = (
        {
            "split": "2+1",
            "mode": mode,
            "stage": stage,
            "kind": kind,
            "micro_batch": micro_batch,
            "step": step,
            "start_ms": 10.0 * step + 3 * micro_batch + stage,
            "end_ms": 10.0 * step + 3 * micro_batch + stage + 1,
        }
        for mode in ("overlap", "no_overlap")
        for stage in (0, 1)
        for micro_batch in (0, 1)
        for step in range(8)
        for kind in ("decode" if step else "prefill", "send")
    )
    return frame(PIPELINE_EVENTS, rows)


def test_the_splits_are_drawn_with_the_best_the_predicted_and_one_device():
    figure, caption = draw_splits(pipeline_table(), "tiny")
    assert len(figure.axes) == 2
    assert "is 2+1 (overlap) at 200 tokens/s, with a bubble of 55.0 %." in caption
    assert "best split with overlap, of all possible, is 2+1." in caption
    assert "One device with all 4 sequences in one batch: 80 tokens/s." in caption


def test_the_timing_diagram_shows_the_best_split_and_its_bubbles():
    figure, caption = draw_gantt(events_table(), pipeline_table(), "tiny")
    whole, close = figure.axes[0], figure.axes[1]
    assert whole.get_xlim() == (0.0, 75.0)
    # Four steps of two stages and two micro-batches from the middle of seven.
    assert close.get_xlim() == (30.0, 65.0)
    assert "Pipeline timing at 2+1 layers" in caption
    assert "55.0 % overlap, 62.5 % no overlap" in caption


def test_without_two_devices_the_pipeline_figures_say_why():
    skipped = pipeline_table(status="skipped", reason="two GPUs are needed", n=0)
    for _, caption in (
        draw_splits(skipped, "gpu"),
        draw_gantt(events_table().iloc[:0], skipped, "gpu"),
    ):
        assert "Not measured: two GPUs are needed. Scale gpu." in caption


def test_sec44_gives_the_interval_at_half_of_the_prompt():
    _, caption = p1_sec44.draw(savings_table(), losses_table(), 0.92, "tiny")
    assert (
        "prompt 512: 45.0 % [43.0, 46.0], 1.82×, 0.947 of the operation count's 47.5 %" in caption
    )
    assert "n = 12 documents" in caption


def test_a_smoke_caption_supports_no_claim():
    _, caption = p1_sec44.draw(savings_table(), losses_table(), 0.92, "smoke")
    assert "no number here supports a claim" in caption


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_a_figure_carries_its_provenance(tmp_path, ending):
    figure, caption = p1_sec44.draw(savings_table(), losses_table(), 0.92, "tiny")
    provenance = {"rule": "plot_sec44", "code": "abc", "inputs": [], "config": {"scale": "tiny"}}
    words = small_print([savings_table()], "tiny")
    save(figure, tmp_path / "fig", caption, provenance, words)
    assert read_figure_provenance(tmp_path / f"fig.{ending}")["rule"] == "plot_sec44"
    assert (tmp_path / "fig.caption.md").read_text().startswith("**Sec 4.4")


def test_an_image_says_itself_what_it_rests_on(tmp_path):
    figure, caption = p1_sec44.draw(savings_table(), losses_table(), 0.92, "tiny")
    words = small_print([savings_table(), pd.DataFrame({"n": [3, 20]})], "tiny")
    assert words == (
        "measured; trained weights; n = 3 to 20 runs; n = 12 documents; policy; float32; cpu; "
        "scale tiny"
    )
    save(figure, tmp_path / "bare", caption, {"rule": "plot_sec44"})
    save(figure, tmp_path / "signed", caption, {"rule": "plot_sec44"}, words)
    bare, signed = (Image.open(tmp_path / f"{name}.png") for name in ("bare", "signed"))
    assert bare.width == signed.width == 300 * PAGE, "300 dots an inch"
    assert signed.height > bare.height, "the words take nothing from the drawing"


def frameworks_table() -> pd.DataFrame:
    rows = []
    for point, limit, workload in (
        *(("small", None, "rollout"), ("small", None, "loop"), ("large", 10.0, "rollout")),
    ):
        for name, speed in (("ember", 8.0), ("transformers", 6.4), ("vllm", None)):
            row = {"point": point, "workload": workload, "framework": name}
            row |= {"prompt_tokens": 32, "generated_tokens": 16, "prompts": 4, "candidates": 8}
            row |= {"limit_tokens_per_s": limit, "read_gb_s": 24.0, "attention": "sdpa"}
            if speed is None:
                reason = "ModuleNotFoundError: No module named 'vllm'"
                row |= {"n": 0, "status": "skipped", "reason": reason}
            else:
                row |= {"n": 3, "ember_ratio": 8.0 / speed}
                for column in (
                    "decode_tokens_per_s",
                    "total_tokens_per_s",
                    "ttft_ms",
                    "ttft_per_prompt_ms",
                ):
                    row |= {f"{column}_median": speed, f"{column}_min": 0.9 * speed}
                    row[f"{column}_max"] = 1.2 * speed
                row |= {"ember_ratio_min": 1.2, "ember_ratio_max": 1.3}
            if name == "transformers":
                row["caveats"] = "KV cache dynamic, not static"
            rows.append(ABOUT | row)
    return frame(FRAMEWORKS, rows)


def test_frameworks_figure_shows_what_was_measured_and_names_what_was_not(tmp_path):
    drawing, caption = p1_frameworks.draw(frameworks_table(), "tiny")
    assert len(drawing.axes) == 6, "speed and time to the first token of three workloads"
    for axes in drawing.axes[::2]:
        shown = [tick.get_text() for tick in axes.get_yticklabels()]
        assert shown == ["Ember", "Transformers generate (sdpa)"]
        assert axes.get_xscale() == "log"
    assert "trained weights" in drawing.axes[1].get_title(loc="right")
    save(drawing, tmp_path / "p1_frameworks", caption, {"rule": "plot_frameworks"})
    assert "small, the loop: Ember is 1.25 times (1.20 to 1.30) as fast as" in caption
    assert "Transformers generate (sdpa) (KV cache dynamic, not static)." in caption
    assert "24.0 GB/s" in caption
    assert "Ember reaches 80 % of it" in caption
    assert "Without a line: the model fits into the processor's cache." in caption
    assert "Not measured everywhere: vLLM" in caption
    assert "nan" not in caption.lower()


def test_frameworks_figure_of_nothing_measured_has_no_rows():
    table = frameworks_table()
    drawing, caption = p1_frameworks.draw(table[table["framework"] == "vllm"], "tiny")
    assert "n = 0 runs" in caption
    assert len(drawing.axes) == 2


def test_loading_caption_has_the_numbers_of_both_tables(tmp_path):
    rows = []
    for loader, seconds in (("read", 0.01), ("ember", 0.05), ("gguf", None)):
        for cache in ("cold", "warm"):
            row = {"loader": loader, "cache": cache, "verified": cache == "warm"}
            if seconds is None:
                row |= {"n": 0, "status": "skipped", "reason": "no checkpoint to export"}
            else:
                row |= {"n": 3, "load_s_median": seconds}
                row |= {"load_s_min": 0.9 * seconds, "load_s_max": 1.1 * seconds}
                row |= {"mb_per_s": 1.0 / seconds, "share_of_limit": 0.01 / seconds}
            rows.append(ABOUT | row)
    parts = {"start_s": 0.1, "import_s": 2.0, "load_s": 0.2, "prefill_s": 0.1, "rest_s": 0.1}
    tokens = frame(
        FIRST_TOKEN,
        [parts | {"repeat": i, "prompt_tokens": 32, "total_s": 2.5 + i} for i in range(3)],
    )
    drawing, caption = p1_loading.draw(frame(LOADING, rows), tokens, "tiny")
    save(drawing, tmp_path / "p1_loading", caption, {"rule": "plot_loading"})
    assert "Ember (safetensors), cold: 0.050 s, 20 % of reading the bytes alone." in caption
    assert "median 3.50 s (2.50 to 4.50)" in caption
    assert "Skipped: gguf (no checkpoint to export)." in caption
    assert "could not be verified" in caption
