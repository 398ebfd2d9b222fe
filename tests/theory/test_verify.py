"""`ntk verify` end to end at tiny sizes, its exit status, and the quick run as continuous integration does it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exact_ntk.cli.verify import verify_claims
from exact_ntk.errors import ConfigError, NtkError
from exact_ntk.theory import summary, theorem_3_2, verify
from exact_ntk.theory.criteria import Claim
from exact_ntk.theory.theorem_3_1 import CnnInitialisationSize, InitialisationSize
from exact_ntk.theory.theorem_3_2 import KappaSize, TrainingSize

TINY = verify.Plan(
    InitialisationSize((16, 32), seeds=6, inputs=3, deepest=2, law_seeds=50),
    CnnInitialisationSize((2, 4), seeds=3, images=2),
    TrainingSize((16, 32), seeds=2, hidden_layers=1, share=0.5, each=2, test_each=2),
    TrainingSize((16, 32), seeds=2, hidden_layers=2, share=0.5, each=2, test_each=2),
    KappaSize((0.5, 1.0), width=16, seeds=2, share=0.5, each=2, test_each=2),
    TrainingSize((8, 16), seeds=1, hidden_layers=2, share=1.0, each=1, test_each=2),
)
PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[Claim]]:
    folder = tmp_path_factory.mktemp("theory")
    return folder, verify.verify_theorems(TINY, folder, torch.device("cpu"))


def test_it_writes_a_summary_of_every_claim_and_every_figure(finished):
    folder, claims = finished
    record = json.loads((folder / "summary.json").read_text())
    assert [c["claim"] for c in record["claims"]] == [c.claim for c in claims]
    assert record["all_hold"] == all(c.holds for c in claims)
    assert record["plan"]["initialisation"]["widths"] == [16, 32]
    assert all({"claim", "measured", "criterion", "holds", "figures", "section"} == set(c) for c in record["claims"])
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["seconds"] > 0
    assert provenance["device_type"] == "cpu"
    text = (folder / "summary.md").read_text()
    pictures = sorted(p.name for p in folder.glob("*.png"))
    assert len(pictures) == 8
    for name in pictures:
        assert (folder / name).read_bytes().startswith(PNG)
        assert f"]({name})" in text
    for claim in claims:
        assert claim.claim.replace("|", "\\|") in text


def test_the_same_plan_gives_the_same_summary(finished, tmp_path: Path, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr("exact_ntk.theory.figures.to_png", lambda figure: b"")
    verify.verify_theorems(TINY, tmp_path, torch.device("cpu"))
    assert (tmp_path / "summary.json").read_bytes() == (folder / "summary.json").read_bytes()


@pytest.mark.parametrize("holds", [True, False])
def test_the_exit_status_says_whether_all_held(holds, tmp_path: Path, monkeypatch, capsys):
    claims = [Claim("one", "1", "at most 1", True, {}), Claim("two", "2", "at most 1", holds, {})]
    monkeypatch.setattr(verify, "verify_theorems", lambda plan, folder, device: claims)
    if holds:
        verify_claims(True, tmp_path, "cpu")
        assert "all 2 claims hold" in capsys.readouterr().out
    else:
        with pytest.raises(NtkError, match="1 of 2 claims FAIL") as error:
            verify_claims(False, tmp_path, "cpu")
        assert error.value.exit_status == 1
        assert "FAILS  two" in capsys.readouterr().out


def test_quick_and_full_are_kept_apart_and_cover_what_they_promise(tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(verify, "verify_theorems", lambda plan, folder, device: asked.append((plan, folder)) or [])
    verify_claims(True, tmp_path, "cpu")
    verify_claims(False, tmp_path, "cpu")
    assert asked == [(verify.QUICK, tmp_path / "theory-quick"), (verify.FULL, tmp_path / "theory")]
    for plan, theorem_1, theorem_2 in ((verify.QUICK, 2**10, 2**10), (verify.FULL, 2**13, 2**12)):
        assert plan.initialisation.widths[0] == 2**6
        assert plan.initialisation.widths[-1] == theorem_1
        assert plan.initialisation.seeds >= 200
        assert plan.initialisation.inputs >= 10
        assert plan.initialisation.deepest == 5
        assert plan.shallow.widths[-1] == theorem_2
        assert all(2 * size.each <= 20 for size in (plan.shallow, plan.deep, plan.kappa, plan.cnn))


def test_a_file_in_the_results_place_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--results"):
        verify_claims(True, tmp_path / "file", "cpu")


def test_a_summary_with_a_failed_claim_says_so():
    section = summary.Section("S", "text", [Claim("a |b|", "2", "at most 1", False, {"value": float("nan")})], [])
    text = summary.summary_page([section], "Made.")
    assert "1 of 1 claims fail" in text.lower()
    assert "**FAILS**" in text
    assert "a \\|b\\|" in text
    record = summary.summary_record([section], {})
    assert not record["all_hold"]
    assert record["claims"][0]["figures"] == {"value": None}


def test_an_experiment_that_goes_wrong_fails_its_claims(monkeypatch):
    """The criteria stand between the data and the verdict: a limit kernel off by a factor is found out."""
    size = replace(TINY.shallow, widths=(64, 256, 1024), seeds=5)
    real = theorem_3_2._limit
    monkeypatch.setattr(theorem_3_2, "_limit", lambda *a: tuple(1.5 * k for k in real(*a)))
    found = verify._training("wrong", "x.png", size, theorem_3_2.fully_connected, torch.device("cpu")).section.claims
    failed = [c.claim for c in found if not c.holds]
    assert any("H*" in claim for claim in failed)
    assert any("training curve" in claim for claim in failed)


def test_an_unknown_device_is_refused_before_a_folder_is_made(tmp_path: Path):
    with pytest.raises(ConfigError, match="--device cuda:99: no such device"):
        verify_claims(True, tmp_path, "cuda:99")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_quick_run_holds(tmp_path: Path):
    command = [sys.executable, "-m", "exact_ntk.cli.main", "verify", "--quick", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "theory-quick" / "summary.md").is_file()
