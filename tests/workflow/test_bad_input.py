"""Bad input is refused before any work starts, with the cause and the remedy."""

import shutil

import pytest

LOCAL = ("--profile", "local")


def refused(checkout, *arguments) -> str:
    done = checkout.snakemake(*arguments, check=False)
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    results = checkout.path / "results"
    assert not results.is_dir() or [p.name for p in results.iterdir()] == ["README.md"]
    return done.stdout


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("scale=tinny", ["unknown scale 'tinny'", "Did you mean 'tiny'"]),
        ("devise=cpu", ["unknown key 'devise'", "Did you mean 'device'"]),
        ("seed=many", ["seed", "'many'", "integer"]),
        ("device=cdua", ["device", "'cdua'", "Did you mean 'cuda'"]),
        (
            "p1={profile: {repeat: 3}}",
            ["unknown key 'p1.profile.repeat'", "Did you mean 'repeats'"],
        ),
        ("p1={model: polcy}", ["p1.model", "'polcy'", "policy"]),
        ("p1={policies: [{name: naif}]}", ["p1.policies.0", "Did you mean 'naive'"]),
    ],
)
def test_a_bad_setting_is_named_with_the_nearest_valid_one(fresh, setting, said):
    output = refused(fresh, "-n", *LOCAL, "--config", setting)
    for words in said:
        assert words in output, output


def test_a_bad_key_in_a_scale_file_is_named_with_the_file(fresh):
    file = fresh.path / "config" / "scale" / "tiny.yaml"
    file.write_text(file.read_text().replace("vocab_size:", "vocabsize:"))
    output = refused(fresh, "-n", *LOCAL)
    assert "'tokenizer.vocabsize' (in config/scale/tiny.yaml)" in output
    assert "Did you mean 'vocab_size'" in output


def test_a_missing_local_model_is_refused_in_the_dry_run(fresh):
    setting = "models={policy: {source: local, path: weights/none}}"
    output = refused(fresh, "-n", *LOCAL, "--config", setting)
    assert "models.policy.path" in output
    assert "weights/none" in output


def test_a_gpu_scale_without_a_gpu_is_refused_before_any_job(fresh):
    output = refused(fresh, "results/p1_fig3.png", *LOCAL, "--config", "scale=gpu")
    assert "needs a GPU" in output
    assert "--config scale=tiny" in output


def without_results(checkout):
    shutil.rmtree(checkout.path / "results")
    return checkout.path / "results"


def test_a_file_in_the_place_of_results_is_refused_in_the_dry_run(fresh):
    without_results(fresh).write_text("in the way")
    done = fresh.snakemake("p1_gates", "-n", *LOCAL, check=False)
    assert done.returncode != 0
    assert "cannot write to results: it is a file" in done.stdout


def test_an_unwritable_results_folder_is_refused_before_any_job(fresh):
    without_results(fresh).symlink_to("/sys")  # not writable, not even for root
    done = fresh.snakemake("p1_gates", *LOCAL, "--config", "scale=smoke", check=False)
    assert done.returncode != 0
    assert "cannot write to results" in done.stdout
    assert "--directory" in done.stdout
    assert not (fresh.path / "logs").exists()
