"""The schedule against what no schedule can beat; the estimate's figures by hand."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember.operations.estimate import (
    duration,
    estimate_plan,
    format_estimate,
    profile_pools,
    schedule,
    size,
)
from ember.operations.history import History, Record
from ember.operations.plan import BadPlan, PlannedJob, profile_scale, profile_settings
from ember.records.provenance import source_root

MANY = {"cores": 4, "timing": 1, "gpu": 1}


def task(place, after=(), threads=1, **resources):
    inputs = tuple(f"made/{n}" for n in after)
    return PlannedJob(
        "make", {"n": str(place)}, inputs, (f"made/{place}",), None, threads, resources
    )


@st.composite
def graphs(draw, most=6, needs=True):
    """Jobs that wait only for earlier ones, and whole seconds, so that sums are exact."""
    jobs, seconds = [], []
    for place in range(draw(st.integers(1, most))):
        after = draw(st.frozensets(st.integers(0, place - 1))) if place else frozenset()
        held = {"timing": st.integers(0, 1), "gpu": st.integers(0, 1)} if needs else {}
        threads = draw(st.integers(1, 6)) if needs else 1
        jobs.append(task(place, after, threads, **{k: draw(v) for k, v in held.items()}))
        seconds.append(float(draw(st.integers(0, 20))))
    return jobs, seconds


pools = st.fixed_dictionaries(
    {"cores": st.integers(1, 4)},
    optional={"timing": st.just(1), "gpu": st.integers(1, 2), "jobs": st.integers(1, 3)},
)


def held(job, pool, size):
    return min({"cores": job.threads, "jobs": 1}.get(pool, job.asks(pool)), size)


def makespan(plan, seconds, limits):
    starts = schedule(plan, seconds, limits)
    return max(start + s for start, s in zip(starts, seconds, strict=True))


@given(graphs(), pools)
def test_a_schedule_keeps_order_and_limits(drawn, limits):
    plan, seconds = drawn
    starts = schedule(plan, seconds, limits)
    spans = [(start, start + s) for start, s in zip(starts, seconds, strict=True)]
    for job, (start, _) in zip(plan, spans, strict=True):
        assert all(spans[int(path[5:])][1] <= start for path in job.inputs)
    for now, _ in spans:
        running = [job for job, (s, e) in zip(plan, spans, strict=True) if s <= now < e]
        for pool, size_ in limits.items():
            assert sum(held(job, pool, size_) for job in running) <= size_


@given(graphs(), pools)
def test_a_schedule_lies_between_its_bounds(drawn, limits):
    plan, seconds = drawn
    wall, cores = makespan(plan, seconds, limits), limits["cores"]
    work = sum(s * held(job, "cores", cores) for job, s in zip(plan, seconds, strict=True))
    chain = max(longest_chain(plan, seconds, n) for n in range(len(plan)))
    assert wall >= chain
    assert wall >= work / cores * (1 - 1e-12)
    assert wall <= sum(seconds)
    assert makespan(plan, seconds, {}) == chain
    assert makespan(plan, seconds, {"cores": 1}) == sum(seconds)


@given(graphs())
def test_timing_jobs_never_overlap(drawn):
    plan, seconds = drawn
    starts = schedule(plan, seconds, MANY)
    timed = [
        (start, start + s)
        for start, job, s in zip(starts, plan, seconds, strict=True)
        if job.asks("timing") and s
    ]
    for (_, end), (start, _) in itertools.pairwise(sorted(timed)):
        assert end <= start


def longest_chain(plan, seconds, place):
    """By recursion over everything before it."""
    before = [int(path[5:]) for path in plan[place].inputs]
    return seconds[place] + max((longest_chain(plan, seconds, n) for n in before), default=0.0)


def best(plan, seconds, cores):
    """The shortest list schedule over all orders: for jobs of one core that is the optimum."""
    orders = itertools.permutations(range(len(plan)))
    return min(
        makespan([plan[n] for n in order], [seconds[n] for n in order], {"cores": cores})
        for order in orders
    )


@given(graphs(most=5, needs=False), st.integers(1, 3))
def test_a_list_schedule_is_within_grahams_bound_of_the_best(drawn, cores):
    wall, optimum = makespan(*drawn, {"cores": cores}), best(*drawn, cores)
    assert optimum <= wall <= (2 - 1 / cores) * optimum + 1e-9


def test_a_schedule_by_hand():
    # The first two share two cores, the third waits for the first, the last takes both.
    plan = [task(0), task(1), task(2, [0]), task(3, [0], threads=2)]
    assert schedule(plan, [3.0, 5.0, 1.0, 2.0], {"cores": 2}) == [0.0, 0.0, 3.0, 5.0]


def test_no_jobs_take_no_time():
    assert schedule([], [], MANY) == []


# The estimate


def job(name, inputs=(), outputs=None, threads=1, rule=None, reason="", **resources):
    rule = rule or name
    wildcards = {"w": name.removeprefix(f"{rule}_")} if rule != name else {}
    return PlannedJob(
        rule,
        wildcards,
        inputs=tuple(inputs),
        outputs=tuple(outputs or [f"results/tiny/{name}.parquet"]),
        benchmark=f"results/tiny/benchmarks/{name}.jsonl",
        threads=threads,
        resources={"mem_mb": 1000, "runtime": 30, "tmpdir": "/tmp"} | resources,
        reason=reason,
    )


def record(name, seconds, rule=None, **more):
    return Record(name, rule or name, seconds, **more)


def look(plan, *records, folder, pools=None, profile="local", notes=()):
    found = estimate_plan(plan, History(records, notes), pools or POOLS, "tiny", folder)
    return {"targets": ["all"], "profile": profile, "scale": "tiny"} | found


PLAN = (
    job("corpus_a", rule="corpus"),
    job("corpus_b", rule="corpus"),
    job("train", ["results/tiny/corpus_a.parquet"], threads=2, gpu=1),
    job("sweep", ["results/tiny/train.parquet"], threads=2, gpu=1, timing=1),
)
POOLS = {"cores": 2, "timing": 1, "gpu": 1}


def test_the_figures_of_a_plan_by_hand(tmp_path):
    records = (
        record("corpus_a", 10.0, "corpus", max_rss_mb=100.0),
        record("corpus_b", 20.0, "corpus", max_rss_mb=300.0),
        record("train", 3600.0, max_rss_mb=350.0, output_bytes=7_000_000, machine="Toy"),
        record("sweep", 1800.0, output_bytes=1_000_000),
        record("train", 7200.0, source="cpu/workflow_jobs.csv"),
    )
    found = look(PLAN, *records, folder=tmp_path)
    # The corpora side by side; training takes both cores and so waits for the slower one.
    assert found["wall_s"] == found["wall_with_limits_s"] == 20 + 3600 + 1800
    assert found["gpu_hours"] == 1.5
    assert found["cpu_hours"] == pytest.approx((10 + 20 + 2 * 5400) / 3600)
    assert (found["write_bytes"], found["unsized"]) == (8_000_000, ["corpus_a", "corpus_b"])
    assert (found["peak_rss_mb"], found["largest_rss_mb"]) == (400.0, 350.0)
    assert found["largest_rss_job"] == "train"
    assert found["no_record"] == []
    assert found["jobs"] == {"corpus": 2, "train": 1, "sweep": 1}
    text = format_estimate(found)
    assert "wall time      1 h 30 min\n" in text
    assert "1 job by the last run here (Toy)" in text
    assert "3 jobs by the last run here (machine not recorded)" in text
    assert "2 jobs of unknown size" in text


def test_jobs_without_a_record_count_nothing_and_are_named(tmp_path):
    found = look(PLAN, record("train", 100.0), folder=tmp_path)
    assert found["wall_s"] == 100.0
    assert found["no_record"] == ["corpus_a", "corpus_b", "sweep"]
    assert found["wall_with_limits_s"] == 30 * 60 + 100 + 30 * 60
    text = format_estimate(found)
    assert "without a record, in the figures only under 'with limits': corpus_a, corpus_b" in text


def test_without_any_record_no_time_is_said(tmp_path):
    found = look(PLAN, folder=tmp_path)
    text = format_estimate(found)
    assert "wall time" not in text
    assert "GPU-hours" not in text
    assert len(found["no_record"]) == 4
    assert "with limits    1 h 30 min, with 4 jobs without a record at the limit" in text


def test_a_job_by_others_of_its_rule_is_named(tmp_path):
    found = look(PLAN[:2], record("corpus_a", 10.0, "corpus"), folder=tmp_path)
    assert found["unscaled"] == ["corpus_b"]
    assert "by other jobs of the same rule, not scaled: corpus_b" in format_estimate(found)


def test_gpu_jobs_do_not_rest_on_cpu_records(tmp_path):
    records = record("train", 10.0, gpu=False), record("corpus_a", 1.0)
    assert look(PLAN[:3], *records, folder=tmp_path)["no_record"] == ["corpus_b", "train"]


def test_products_that_are_there_give_the_size_and_are_replaced(tmp_path):
    there = tmp_path / "results" / "tiny"
    (there / "train.parquet").mkdir(parents=True)
    (there / "train.parquet" / "weights").write_bytes(b"x" * 900)
    (there / "sweep.parquet").write_bytes(b"x" * 100)
    found = look(PLAN[2:], folder=tmp_path)
    assert (found["write_bytes"], found["replace_bytes"], found["unsized"]) == (1000, 1000, [])
    assert "1 kB to write; replaces 1 kB" in format_estimate(found)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"products": [{"path": "a", "sha256": "", "bytes": 7}]}', 7),
        *(("{", 0), ("[]", 0), ('{"products": [{"bytes": 7}]}', 0)),
    ],
)
def test_the_record_of_a_job_says_what_it_wrote_and_where(tmp_path, text, written):
    benchmarks = tmp_path / "results/tiny/benchmarks"
    benchmarks.mkdir(parents=True)
    (benchmarks / "sweep.job.json").write_text(text)
    found = look(PLAN[3:], record("sweep", 1.0), folder=tmp_path)
    assert found["write_bytes"] == written
    (benchmarks / "sweep.job.json").write_text('{"hardware": {"cpu": "Toy", "cores": 2}}')
    found = look(PLAN[3:], record("sweep", 1.0), folder=tmp_path)
    assert found["rests_on"] == {"the last run here (Toy, 2 cores)": 1}


def test_too_little_disk_is_warned_of(tmp_path):
    records = (record("train", 10.0, output_bytes=10**18),)
    text = format_estimate(look(PLAN[2:3], *records, folder=tmp_path))
    assert "warning: 1e+06 TB more disk is needed" in text
    assert "warning" not in format_estimate(look(PLAN[3:], *records, folder=tmp_path))


def test_changed_settings_are_said(tmp_path):
    plan = [job("train", reason="Params have changed since last execution: before: 1 now: 2")]
    found = look(plan, record("train", 10.0), folder=tmp_path)
    assert found["changed"] == ["train"]
    assert "settings or code changed since the record, at least of: train" in format_estimate(found)


def test_nothing_to_do(tmp_path):
    assert format_estimate(look([], folder=tmp_path)).endswith(
        "Nothing to do: everything is there (--all estimates it anew)."
    )


def test_a_cluster_is_told_without_its_queue(tmp_path):
    found = look(PLAN, record("train", 10.0), folder=tmp_path, pools={"jobs": 50})
    assert "queue" in format_estimate(found)


def test_notes_of_the_history_are_shown(tmp_path):
    assert "note: x is cut" in format_estimate(look(PLAN, folder=tmp_path, notes=("x is cut",)))


def test_the_estimate_is_plain_data(tmp_path):
    found = look(PLAN, folder=tmp_path)
    assert json.loads(json.dumps(found)) == found


# Profiles


def test_the_profiles_of_this_workflow():
    local = profile_pools(profile_settings("local"))
    assert local["timing"] == local["gpu"] == 1
    assert local["cores"] >= 1
    assert "jobs" not in local
    mine = profile_pools(profile_settings("local"), cores=3, jobs=2)
    assert mine == {"timing": 1, "gpu": 1, "cores": 3, "jobs": 2}
    slurm = profile_pools(profile_settings("slurm"))
    assert slurm["jobs"] >= 1
    assert "cores" not in slurm
    assert profile_pools(profile_settings("slurm"), jobs=7)["jobs"] == 7
    assert (profile_scale("local"), profile_scale("slurm")) == ("tiny", "gpu")


def test_resources_of_a_profile_may_be_a_mapping():
    pools = profile_pools({"cores": 4, "resources": {"timing": 1, "mem": "4GB"}})
    assert pools == {"timing": 1, "cores": 4}


@pytest.mark.parametrize("content", ["[", "- a", "7", "\xff"])
def test_a_profile_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content, encoding="latin-1")
    with pytest.raises(BadPlan, match=r"config\.yaml cannot be read"):
        profile_settings(str(tmp_path))
    assert profile_scale(str(source_root() / "slurm")) == "gpu"


def test_an_unknown_profile_is_refused(tmp_path):
    with pytest.raises(BadPlan, match="is no profile"):
        profile_settings(str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 0 s")),
        *((754.6, "12 min 35 s"), (3599.6, "1 h 0 min"), (12_000, "3 h 20 min")),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e12, "3 TB")],
)
def test_sizes(count, text):
    assert size(count) == text
