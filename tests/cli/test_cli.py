"""The commands as a user types them: the whole run, its resume, exit statuses, and one line for every bad input."""

import contextlib
import io
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from exact_ntk.cli import main as command_line
from exact_ntk.errors import NtkError
from exact_ntk.records import Results, read_record
from exact_ntk.report.collect import collect
from exact_ntk.report.write import lost_cells
from exact_ntk.settings import load_config
from tests.conftest import digit_arrays
from tests.made_up import table_of


@dataclass(frozen=True)
class Done:
    """What a command printed, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def ntk(folder: Path, *arguments: str) -> Done:
    """A command as typed in `folder`, in this process: what an interpreter of its own would add is seconds."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["ntk", *arguments])
        patch.setattr(sys, "unraisablehook", sys.unraisablehook)  # no user, no silence
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            command_line.main()
        logging.disable(logging.NOTSET)
    return Done(ended.value.code or 0, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which `ntk run` on kernel columns has finished once."""
    folder = tmp_path_factory.mktemp("finished")
    np.savez(folder / "digits.npz", **digit_arrays(40, 20, side=4))
    tree = {
        "name": "tiny",
        "data": {"dataset": "npz", "path": "digits.npz"},
        "gram": {"backend": "reference", "tile": 10},
        "columns": [
            {"model": "cntk", "readout": "vanilla", "depths": [3], "train": {"n": 20, "draws": 2}},
            {"model": "cntk", "readout": "gap", "depths": [3, 4], "paper": [70.47, 75.93]},
        ],
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    done = ntk(folder, "run", "tiny.yaml")
    assert done.returncode == 0, done.stderr
    assert "70.47" in done.stdout
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "tables")
    return tmp_path / "tables"


def test_a_run_writes_every_result(finished: Path):
    names = {p.name for p in (finished / "results" / "tiny").iterdir()}
    assert names == {
        *("results.json", "provenance.json", "config.yaml", "table.md", "table.csv"),
        *("table.tex", "figures", "report.html"),
    }
    found = json.loads((finished / "results" / "tiny" / "results.json").read_text())
    assert len(found["records"]) == 3
    assert found["missing"] == []


def test_a_plan_writes_nothing_and_counts_only_what_is_not_there(folder: Path):
    def there() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = there()
    done = ntk(folder, "plan", "tiny.yaml")
    assert (done.returncode, done.stdout) == (0, "nothing is left to compute\n")
    other = ntk(folder, "plan", "tiny.yaml", "--set", "columns.0.ridge=0.1", "--memory", "751MB")
    assert re.search(r"^CNTK-V-20: solve 2 systems of 20 images: .* of 1\.\d MB", other.stdout, re.M), other.stdout
    assert "entry-layers" not in other.stdout
    elsewhere = ntk(folder, "plan", "tiny.yaml", "--runs", "runs2")
    assert elsewhere.stdout.count("entry-layers") == 2
    assert there() == before


def test_a_second_run_repeats_nothing_and_gives_the_same_bytes(folder: Path):
    results = folder / "results" / "tiny"
    before = {p.name: p.read_bytes() for p in results.glob("*.*")}
    heavy = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("c/*/*")}
    assert len(heavy) > 20
    assert ntk(folder, "run", "tiny.yaml").returncode == 0
    assert {p: p.stat().st_mtime_ns for p in heavy} == heavy
    for name in ("results.json", "table.md", "table.csv", "table.tex", "report.html", "config.yaml"):
        assert (results / name).read_bytes() == before[name]


def test_a_fresh_run_elsewhere_gives_the_same_results(folder: Path):
    options = ["--runs", "runs2", "--results", "results2"]
    assert ntk(folder, "run", "tiny.yaml", *options).returncode == 0
    one, two = (folder / r / "tiny" / "results.json" for r in ("results", "results2"))
    assert one.read_bytes() == two.read_bytes()


def test_status_says_what_is_missing(folder: Path):
    done = ntk(folder, "status", "tiny.yaml")
    assert (done.returncode, "3 done, 0 missing" in done.stdout) == (0, True)
    next((folder / "runs" / "tiny").glob("gram-*/gap-L4/c/1/0")).unlink()
    assert ntk(folder, "status", "tiny.yaml").returncode == 0  # what is solved needs no tile any more
    shutil.rmtree(folder / "runs" / "tiny" / "solve")
    left = ntk(folder, "status", "tiny.yaml")
    assert left.returncode == 3
    assert "Gram CNTK-GAP: 17 of 18 tiles done" in left.stdout
    assert "CNTK-GAP/3: run `ntk solve tiny.yaml`" in left.stdout
    assert "CNTK-GAP/4: run `ntk compute-gram tiny.yaml` and `ntk solve tiny.yaml`" in left.stdout
    assert left.stderr.endswith("error: tiny is not finished: `ntk run tiny.yaml` goes on where it stopped\n")


def test_stages_out_of_order_exit_with_3(folder: Path):
    shutil.rmtree(folder / "runs")
    early = ntk(folder, "solve", "tiny.yaml")
    assert early.returncode == 3
    assert early.stderr.splitlines()[-1].startswith("error: ")
    elsewhere = ntk(folder, "report", "tiny.yaml", "--results", "other")
    assert elsewhere.returncode == 3
    assert "missing CNTK-V-20/3" in elsewhere.stdout


def lost_over(folder: Path, *renamed: str) -> str:
    """What a report of the renamed columns would lose of the table that is there."""
    config = load_config(str(folder / "tiny.yaml"), list(renamed[1::2]))
    new = table_of(folder / "tiny.yaml", folder / "empty", f"data.path={folder}/digits.npz", *renamed[1::2])
    results = collect(new).results.model_copy(update={"config": config.resolved()})
    return ", ".join(lost_cells(results, read_record(folder / "results" / "tiny" / "results.json", Results)))


def test_an_emptier_report_replaces_nothing(folder: Path):
    before = {p.name: p.read_bytes() for p in (folder / "results" / "tiny").glob("*.*")}
    shutil.rmtree(folder / "runs")
    lost = ntk(folder, "report", "tiny.yaml")
    assert lost.returncode == 3
    assert "would lose CNTK-V-20/3, CNTK-GAP/3, CNTK-GAP/4, which this config still asks for" in lost.stderr
    renamed = ["--set", "columns.0.name=VAN", "--set", "columns.1.name=POOLED"]
    assert lost_over(folder, *renamed) == "VAN/3, POOLED/3, POOLED/4"
    (folder / "results" / "tiny" / "results.json").write_text("{}")
    assert ntk(folder, "report", "tiny.yaml").returncode == 3
    (folder / "results" / "tiny" / "results.json").write_bytes(before["results.json"])
    assert {p.name: p.read_bytes() for p in (folder / "results" / "tiny").glob("*.*")} == before
    # What the config no longer asks for may go: the depth that is left is solved again, and is all the table holds.
    tree = yaml.safe_load((folder / "tiny.yaml").read_text())
    tree["columns"] = [{**tree["columns"][1], "depths": [3], "paper": []}]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    assert ntk(folder, "run", "tiny.yaml").returncode == 0
    assert len(json.loads((folder / "results" / "tiny" / "results.json").read_text())["records"]) == 1


def test_a_run_over_a_full_table_and_an_empty_folder_ends_with_the_same_table(folder: Path):
    before = (folder / "results" / "tiny" / "results.json").read_bytes()
    shutil.rmtree(folder / "runs")
    assert ntk(folder, "run", "tiny.yaml").returncode == 0
    assert (folder / "results" / "tiny" / "results.json").read_bytes() == before


def test_a_bad_cell_stops_neither_the_others_nor_the_report(folder: Path, monkeypatch):
    def no_time(*_):
        raise NtkError("no time is best")

    monkeypatch.setattr("exact_ntk.regression.early_stopping.stop_early", no_time)
    done = ntk(folder, "run", "tiny.yaml", "--set", "columns.0.early_stopping={}")
    assert_one_line(done, "column CNTK-V-20, depth 3: no time is best")
    (variant,) = (folder / "results" / "tiny" / "variants").iterdir()
    assert [r["column"] for r in json.loads((variant / "results.json").read_text())["records"]] == ["CNTK-GAP"] * 2


def test_a_failed_cell_is_listed_and_ends_every_command_with_1(folder: Path, monkeypatch):
    monkeypatch.setattr("exact_ntk.regression.cell.LARGEST_RESIDUAL", 0.0)
    done = ntk(folder, "run", "tiny.yaml")
    assert_one_line(done, "column CNTK-V-20, depth 3: the solution of draw 0 leaves a residual of")
    assert "failed CNTK-V-20/3" in done.stdout
    assert_one_line(ntk(folder, "report", "tiny.yaml"), "3 cells of tiny failed: see the notes above")
    status = ntk(folder, "status", "tiny.yaml")
    assert_one_line(status, "3 cells of tiny failed")
    assert "cells: 0 done, 0 missing, 3 failed\n  CNTK-V-20/3: failed: the solution" in status.stdout


def test_overrides_may_complete_a_config(folder: Path):
    tree = yaml.safe_load((folder / "tiny.yaml").read_text())
    del tree["data"]["path"]
    (folder / "base.yaml").write_text(yaml.safe_dump(tree))
    assert ntk(folder, "run", "base.yaml", "--set", "data.path=digits.npz").returncode == 0


def test_status_of_a_finished_table_imports_neither_torch_nor_zarr(folder: Path):
    command = (
        "from exact_ntk.cli.main import main\ntry:\n    main()\nfinally:\n    print(sorted({*sys.modules} & {*HEAVY}))"
    )
    code = f"import sys\nHEAVY = 'torch', 'zarr', 'matplotlib', 'sklearn'\n{command}"
    arguments = [sys.executable, "-P", "-c", code, "status", "tiny.yaml"]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "cells: 3 done, 0 missing\n[]\n")


def test_images_of_the_users_own_are_in_the_report_only_where_that_is_asked_for(folder: Path):
    words, path = ("tiny.yaml", "--set", "columns.0.train={n: all}"), "results/tiny/variants/*/report.html"
    asked = ["run"], ["report", "--pictures"], ["run", "--pictures"], ["report"]
    for command, shown in zip(asked, (False, True, True, False), strict=True):
        assert ntk(folder, *command, *words).returncode == 0
        assert ("Images that tell two columns apart" in next(folder.glob(path)).read_text()) == shown


def test_status_writes_nothing(folder: Path):
    next((folder / "runs" / "tiny").glob("gram-*/zarr.json")).unlink()
    shutil.rmtree(folder / "runs" / "tiny" / "solve")
    before = sorted(p for p in folder.rglob("*") if p.is_file())
    assert ntk(folder, "status", "tiny.yaml").returncode == 3
    assert sorted(p for p in folder.rglob("*") if p.is_file()) == before


def test_overrides_have_results_of_their_own(folder: Path):
    before = (folder / "results" / "tiny" / "results.json").read_bytes()
    assert ntk(folder, "run", "tiny.yaml", "--set", "columns.0.ridge=0.1").returncode == 0
    assert (folder / "results" / "tiny" / "results.json").read_bytes() == before
    (variant,) = (folder / "results" / "tiny" / "variants").iterdir()
    assert json.loads((variant / "results.json").read_text())["records"][0]["ridge"] == 0.1
    # An override that changes nothing is no variant.
    assert ntk(folder, "run", "tiny.yaml", "--set", "columns.0.ridge=0").returncode == 0
    assert len(list((folder / "results" / "tiny" / "variants").iterdir())) == 1


def test_a_command_in_a_message_is_what_this_user_would_type(folder: Path):
    shutil.rmtree(folder / "runs")
    options = ["--set", "columns.*.depths=[3, 5]", "--runs", "my runs"]
    early = ntk(folder, "solve", "tiny.yaml", *options)
    advice = "`ntk compute-gram tiny.yaml --set 'columns.*.depths=[3, 5]' --runs 'my runs'`"
    assert advice in early.stderr
    words = shlex.split(advice.strip("`"))[1:]
    assert ntk(folder, *words).returncode == 0
    assert ntk(folder, "solve", "tiny.yaml", *options).returncode == 0
    missing = ntk(folder, "solve", "tiny.yaml", "--set", "data={dataset: cifar10, root: nowhere}")
    assert "`ntk download tiny.yaml --set" in missing.stderr


def spoiled(tree: dict, folder: Path, **arrays) -> None:
    np.savez(folder / "bad.npz", **{**digit_arrays(40, 20, side=4), **arrays})
    tree["data"]["path"] = "bad.npz"


def nan_images() -> np.ndarray:
    x = digit_arrays(40, 20, side=4)["x_train"] / 255.0
    x[5, 0, 0] = np.nan
    return x


def written(folder: Path, name: str, columns: list[dict], data: dict | None = None, **arrays) -> str:
    """A config in `folder` over the small digits, some of their arrays replaced or, by None, left out."""
    found = {**digit_arrays(40, 20, side=4), **arrays}
    np.savez(folder / f"{name}.npz", **{key: value for key, value in found.items() if value is not None})
    tree = {"name": name, "data": {"dataset": "npz", "path": f"{name}.npz", **(data or {})}, "columns": columns}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**tree, "gram": {"backend": "reference"}}))
    return f"{name}.yaml"


VANILLA = {"model": "cntk", "readout": "vanilla", "depths": [3], "train": {"n": 20}}


def cells_of(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / "results" / name / "results.json").read_text())["records"]


def test_one_data_set_in_any_dress_is_one_table(tmp_path: Path):
    """Channels first, other names, labels in words: the same cells, fingerprints included."""
    a = digit_arrays(40, 20, side=4)
    colour = {key: np.repeat(a[key], 3, 3) // [1, 2, 3] for key in ("x_train", "x_test")}
    colour = {key: x.astype(np.uint8) for key, x in colour.items()}
    first = {key: x.transpose(0, 3, 1, 2) for key, x in colour.items()}
    last_config = written(tmp_path, "last", [VANILLA], **colour)
    assert_one_line(ntk(tmp_path, "run", written(tmp_path, "first", [VANILLA], **first)), "data.layout: nhwc, or nchw")
    renamed = {"images": first["x_train"], "kinds": a["y_train"].astype(str), "x_train": None, "y_train": None}
    keys = {"layout": "nchw", "keys": {"x_train": "images", "y_train": "kinds"}}
    dressed = {"x_test": first["x_test"], "y_test": a["y_test"].astype(str), **renamed}
    for config in (last_config, written(tmp_path, "dressed", [VANILLA], keys, **dressed)):
        done = ntk(tmp_path, "run", config)
        assert done.returncode == 0, done.stderr
    assert cells_of(tmp_path, "last") == cells_of(tmp_path, "dressed")


def test_one_set_of_images_is_enough_for_columns_tested_on_what_they_do_not_draw(tmp_path: Path):
    undrawn = {**VANILLA, "test": "undrawn"}
    config = written(tmp_path, "single", [undrawn], x_test=None, y_test=None)
    done = ntk(tmp_path, "run", config)
    assert done.returncode == 0, done.stderr
    assert cells_of(tmp_path, "single")[0]["n_test"] == 20
    assert_one_line(
        ntk(tmp_path, "run", config, "--set", "columns.0.test=both"), "no array x_test; it holds x_train (40"
    )


def test_tested_images_that_were_trained_on_are_in_the_report(tmp_path: Path):
    a = digit_arrays(40, 20, side=4)
    x, y = a["x_test"].copy(), a["y_test"].copy()
    x[:3], y[:3] = a["x_train"][:3], a["y_train"][:3]
    everything = {**VANILLA, "train": {"n": "all"}, "ridge": 0.001}
    done = ntk(tmp_path, "run", written(tmp_path, "leak", [everything], x_test=x, y_test=y))
    assert "CNTK-V: 3 of the 20 images tested equal a training image of their draw." in done.stdout
    assert cells_of(tmp_path, "leak")[0]["copies_tested"] == 3


def test_a_tilde_is_the_home_folder_in_every_option(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ["--set", "data.path=~/tables/digits.npz", "--runs=~/scratch"]
    assert ntk(folder, "compute-gram", "tiny.yaml", *options).returncode == 0
    assert ntk(folder, "report", "tiny.yaml", *options, "--results=~/kept").returncode == 3
    assert (tmp_path / "kept" / "tiny").is_dir()
    assert (tmp_path / "scratch" / "tiny").is_dir()
    assert not [path for path in folder.rglob("*") if "~" in path.name]
    assert_one_line(ntk(folder, "run", "tiny.yaml", "--runs=~nobody-of-that-name/x"), "no home folder is known for ~")


BAD_CONFIGS = {
    "unknown key": (lambda t, f: t.update(colums=[]), "colums: unknown key; did you mean columns"),
    "wrong type": (lambda t, f: t["columns"][0].update(depths="three"), "columns.0.depths"),
    "missing file": (lambda t, f: t["data"].update(path="nowhere.npz"), "nowhere.npz"),
    "corrupt npz": (lambda t, f: (f / "digits.npz").write_bytes(b"PK\x03\x04 nonsense"), "damaged"),
    "pickled array": (lambda t, f: spoiled(t, f, x_train=np.array([{}] * 40)), "pickled"),
    "NaN pixels": (lambda t, f: spoiled(t, f, x_train=nan_images(), x_test=nan_images()[:20]), "image 5 holds NaN"),
    "unknown dataset": (lambda t, f: t["data"].update(dataset="mnist"), "'mnist'"),
    "train size": (lambda t, f: t["columns"][0].update(train={"n": 999}), "train.n is 999, but there are 40"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_config_or_archive_ends_in_one_clear_line(folder: Path, case: str):
    spoil, words = BAD_CONFIGS[case]
    tree = yaml.safe_load((folder / "tiny.yaml").read_text())
    spoil(tree, folder)
    (folder / "bad.yaml").write_text(yaml.safe_dump(tree))
    assert_one_line(ntk(folder, "run", "bad.yaml"), words)


def assert_one_line(done: Done, words: str) -> None:
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors == done.stderr.splitlines()[-1:]
    assert words in errors[0]


def test_an_empty_config_and_an_unknown_device_too(folder: Path):
    (folder / "empty.yaml").write_text("")
    assert_one_line(ntk(folder, "run", "empty.yaml"), "is empty")
    assert_one_line(ntk(folder, "run", "tiny.yaml", "--device", "cuda:99"), "no such device")
    assert_one_line(ntk(folder, "run", "tiny.yaml", "--device", "gpu"), "no such device")
    assert_one_line(ntk(folder, "run", "nowhere"), "bundled are")


def test_a_flipped_byte_loses_nothing_good_and_is_mended(folder: Path):
    results = (folder / "results" / "tiny" / "results.json").read_bytes()
    shutil.rmtree(folder / "runs" / "tiny" / "solve")
    (victim,) = (folder / "runs" / "tiny").glob("gram-*/gap-L4/c/3/1")
    content = bytearray(victim.read_bytes())
    content[33] ^= 16
    victim.write_bytes(content)
    assert_one_line(ntk(folder, "run", "tiny.yaml"), "tile (3, 1) of gap-L4 is damaged")
    assert "1 damaged" not in ntk(folder, "status", "tiny.yaml").stdout
    status = ntk(folder, "status", "tiny.yaml", "--verify").stdout
    assert "1 damaged (mend with `ntk compute-gram --repair tiny.yaml`)" in status
    assert ntk(folder, "compute-gram", "tiny.yaml", "--repair").returncode == 0
    assert ntk(folder, "run", "tiny.yaml").returncode == 0
    assert (folder / "results" / "tiny" / "results.json").read_bytes() == results


def test_a_store_edited_or_renamed_is_refused_by_field(folder: Path):
    (store,) = [p.parent for p in (folder / "runs" / "tiny").glob("gram-*/gap-L3")]
    tree = json.loads((store / "zarr.json").read_text())
    tree["attributes"]["fields"]["dtype"] = "float64"
    (store / "zarr.json").write_text(json.dumps(tree))
    assert_one_line(ntk(folder, "compute-gram", "tiny.yaml", "--all"), "another dtype")


def test_a_folder_that_cannot_be_written_is_named(folder: Path):
    (folder / "file").write_text("")
    assert_one_line(ntk(folder, "run", "tiny.yaml", "--runs", "file"), "--runs file: is a file")
    assert_one_line(ntk(folder, "run", "tiny.yaml", "--runs", "/proc/none"), "/proc/none")
    refused = ntk(folder, "run", "tiny.yaml", "--runs", "new", "--results", "/proc/none")
    assert_one_line(refused, "cannot write in /proc/none/tiny")
    assert not list((folder / "new" / "tiny").iterdir())  # found out before anything is computed


def test_usage_errors_exit_with_2(folder: Path):
    assert ntk(folder, "compute-gram", "tiny.yaml", "--shard", "3/2").returncode == 2
    assert ntk(folder, "fly").returncode == 2
    potatoes = ntk(folder, "solve", "tiny.yaml", "--memory", "8 potatoes")
    assert potatoes.returncode == 2
    assert "--memory 8 potatoes: should be a size such as 8GB" in potatoes.stderr


def test_a_solve_that_memory_cannot_hold_is_refused_with_the_number(folder: Path):
    shutil.rmtree(folder / "runs" / "tiny" / "solve")
    refused = ntk(folder, "solve", "tiny.yaml", "--memory", "10MB")
    assert refused.returncode == 1
    number = re.search(r"error: column .*: --memory is 10.0 MB, and would have to be (.*)\n", refused.stderr)
    assert ntk(folder, "solve", "tiny.yaml", "--memory", number[1]).returncode == 0


def test_help_needs_no_heavy_import_and_completion_knows_the_configs(folder: Path):
    script = (
        "import sys; sys.argv = ['ntk', '--help']; import exact_ntk.cli.main as m\n"
        "try: m.main()\n"
        "finally: print(sorted({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)
    assert "compute-gram" in shown.stdout
    assert shown.stdout.strip().endswith("[]")
    from exact_ntk.cli.main import _complete_config

    assert _complete_config("cifar") == ["cifar10", "cifar10-2k", "cifar10-beyond"]


def test_out_of_memory_is_one_line_and_other_errors_are_not_hidden():
    from exact_ntk.cli.main import _out_of_memory

    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee the documentation")
    assert "20.00 GiB" in _out_of_memory(gpu)
    assert "--device cpu" in _out_of_memory(gpu)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55)
    assert "out of memory" in _out_of_memory(caught.value)
    assert _out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_images_too_large_for_memory_are_refused_before_the_first_pair(folder: Path, monkeypatch):
    monkeypatch.setattr("exact_ntk.kernels.backends.available_memory", lambda device: 1000)
    refused = ntk(folder, "compute-gram", "tiny.yaml", "--all", "--runs", "new")
    assert_one_line(refused, "error: CNTK-V-20: one pair of 4 x 4 images takes")
    assert not list((folder / "new" / "tiny").glob("gram-*"))


def test_bench_and_verify_refuse_a_folder_before_they_measure(folder: Path):
    (folder / "file").write_text("")
    assert_one_line(ntk(folder, "bench", "--results", "file"), "file/bench")
    assert_one_line(ntk(folder, "verify", "--quick", "--results", "/proc/none"), "/proc/none")


def test_two_tables_are_compared_and_a_folder_without_one_is_a_line(finished: Path):
    done = ntk(finished, "compare", "results/tiny", "results/tiny")
    assert done.returncode == 0
    assert done.stdout.count("+0.00 ± ") == 3
    wrong = ntk(finished, "compare", "results/tiny", "results/nowhere")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: results/nowhere holds no results.json: name a folder that `ntk report")
    assert wrong.stderr.count("\n") == 1
