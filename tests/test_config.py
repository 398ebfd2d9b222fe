"""The config: what is accepted, what is refused and how the refusal reads, and what the bundled tables are."""

from pathlib import Path

import pytest
import yaml

from exact_ntk.config import Config
from exact_ntk.errors import ConfigError
from exact_ntk.files import fingerprint
from exact_ntk.kernel_names import window_of
from exact_ntk.report.paired import counterparts
from exact_ntk.settings import bundled, load_config

PUBLISHED = Path(__file__).parents[1] / "results" / "published"


def test_bundled_configs_are_valid_and_named_after_their_file():
    for name in bundled():
        assert load_config(name).name == name


def test_cifar10_is_the_papers_table():
    config = load_config("cifar10")
    assert config.column_names == ["CNN-V", "CNTK-V", "CNTK-V-2K", "CNN-GAP", "CNTK-GAP", "CNTK-GAP-2K"]
    assert all(c.depths == (3, 4, 6, 11, 21) and len(c.paper) == 5 for c in config.columns)
    assert config.columns[4].paper == (70.47, 75.93, 76.73, 77.43, 77.08)


def test_digits_beyond_tells_what_each_choice_does_by_itself():
    config = load_config("digits-beyond")
    ends = {(c.trains_first, c.trains_last, c.train.n, c.train.draws) for c in config.columns}
    assert len(ends) == 1
    assert len({c.depths for c in config.columns if c.readout != "myrtle"}) == 1
    assert not any(c.flips for c in config.columns)  # a mirrored digit is another sign
    pairs = counterparts(config)
    for choice in ("loo minus GAP", "loo-unit minus GAP-loo", "loo-ZCA minus GAP-loo"):
        one, other = choice.split(" minus ")
        assert (f"GAP-{one}", other) in pairs
    assert ("Myrtle-loo", "Myrtle") in pairs
    assert {("LAP-1", "GAP"), ("LAP-2", "V"), ("GAP", "V"), ("GAP-loo-ZCA", "V-loo-ZCA")} <= set(pairs)


def test_cifar10_beyond_goes_one_step_at_a_time():
    """Plain, with a chosen ridge, with mirror images, whitened: of every readout and both kernels."""
    config = load_config("cifar10-beyond")
    readouts = {"vanilla", "gap", "lap-4", "lap-8", "lap-12", "myrtle"}
    assert {(c.readout, c.model) for c in config.columns} == {(r, m) for r in readouts for m in ("cntk", "nngp")}
    assert all(c.trains_first and c.trains_last for c in config.columns if c.model == "cntk")
    pairs, names = counterparts(config), config.column_names
    assert all((names[k], names[k - 1]) in pairs for k in range(len(names)) if k % 4)
    # Li et al. 2019, tables 1 and 2.
    assert [config.columns[names.index(name)].paper for name in ("LAP-12-loo", "LAP-12-NNGP-flips-loo")] == [
        (80.11,),
        (82.13,),
    ]


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*/config.yaml")), ids=lambda path: path.parent.name)
def test_a_published_table_can_be_computed_again(path: Path):
    assert load_config(str(path)).name == path.parent.name


def test_digits_has_all_six_columns():
    models = [(c.model, c.readout) for c in load_config("digits").columns]
    assert sorted(models) == sorted([(m, r) for r in ("vanilla", "gap") for m in ("cnn", "cntk", "cntk")])


@pytest.mark.parametrize(
    "assignment, words",
    [
        ("columns.0.dephts=[3]", "columns.0.dephts: unknown key; did you mean depths"),
        ("colour=red", "colour: unknown key"),
        ("data.pth=x", "data.pth: unknown key; did you mean path"),
        ("columns.0.depths=hello", "columns.0.depths: .*list, not 'hello'"),
        ("columns.0.depths=[3, 3]", "columns.0: depths should increase"),
        ("columns.0.depths=[1]", "columns.0.depths.0: .*greater than or equal to 2"),
        ("columns.0.paper=[50.0]", "columns.0: paper should hold one value for each of the 2 depths"),
        ("columns.0.train.n=true", "columns.0.train.n: should be 'all' or an integer"),
        ("columns.0.train.n=0", "columns.0.train.n"),
        ("columns.0.train.draws=1.5", "columns.0.train.draws: .*integer"),
        ("columns.0.ridge=-1", "columns.0.ridge: .*greater than or equal to 0"),
        ("columns.0.ridge=.nan", "columns.0.ridge"),
        ("columns.0.test=nowhere", "columns.0.test.from"),
        ("columns.0.model=svm", "columns.0: .*'svm'"),
        ("columns.1.depths=[2]", "columns.1: at depth 2 .* nothing is trained"),
        ("columns.2.train_last=true", "columns.2: the NNGP kernel"),
        ("columns.*.name=same", "two columns are called same"),
        ("columns=[]", "columns: .*at least 1"),
        ("data.dataset=mnist", "data: .*'mnist'"),
        ("gram.tile=0", "gram.tile: should be 'auto' or an integer"),
        ("order.seed=-1", "order.seed"),
        ("name=../up", "name: should consist of letters .*, a letter or digit first, not '../up'"),
        ("columns.7.ridge=1", "7 is not one of the items 0 to 2"),
        ("nonsense", "should be KEY=VALUE"),
    ],
)
def test_a_bad_value_is_refused_by_its_key_on_one_line(config_path: Path, assignment: str, words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(str(config_path), [assignment])
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_a_limit_of_epochs_for_each_depth(widths_path: Path):
    options = ["columns.0.depths=[3, 4]", "columns.0.epochs=[30, 20]"]
    column = load_config(str(widths_path), options).columns[0]
    assert [column.epochs_at(depth) for depth in (3, 4)] == [30, 20]
    assert load_config(str(widths_path), ["columns.0.epochs=7"]).columns[0].epochs_at(3) == 7
    for epochs, words in [
        ("[3, 4]", "columns.0: epochs should be one number, or one for each of the 1 depths"),
        ("[]", "columns.0.epochs: should be an integer of at least 1, or a list of one for each depth"),
        ("0", "columns.0.epochs: should be an integer of at least 1"),
    ]:
        with pytest.raises(ConfigError, match=words):
            load_config(str(widths_path), [f"columns.0.epochs={epochs}"])


@pytest.fixture
def widths_path(tmp_path: Path) -> Path:
    """A network in two widths, then another column."""
    path = tmp_path / "widths.yaml"
    columns = [
        {"model": "cnn", "readout": "gap", "depths": [3], "train": {"n": 20}, "width": [8, 16]},
        {"model": "cntk", "readout": "gap", "depths": [3], "train": {"n": 20}},
    ]
    path.write_text(yaml.safe_dump({"name": "widths", "data": {"dataset": "digits"}, "columns": columns}))
    return path


def test_a_list_of_widths_is_a_column_each(widths_path: Path, tmp_path: Path):
    config = load_config(str(widths_path), ["columns.0.epochs=7"])
    assert config.column_names == ["CNN-GAP-20-w8", "CNN-GAP-20-w16", "CNTK-GAP-20"]
    assert [(c.width, c.epochs) for c in config.columns[:2]] == [(8, 7), (16, 7)]
    named = load_config(str(widths_path), ["columns.0.name=net"])
    assert named.column_names == ["net-w8", "net-w16", "CNTK-GAP-20"]
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config.resolved()))
    assert load_config(str(again)).resolved() == config.resolved()
    assert load_config(str(widths_path), ["columns.0.width=[8]"]).column_names == ["CNN-GAP-20", "CNTK-GAP-20"]


@pytest.mark.parametrize(
    "assignment, words",
    [
        ("columns.0.width=[8, 0]", "columns.0.width: .*greater than or equal to 1, not 0$"),
        ("columns.0.width=[]", "columns.0.width: .*valid integer$"),
        ("columns.0.width=wide", "columns.0.width: .*valid integer, not 'wide'$"),
        ("columns.0.width=[8, 8]", "two columns are called CNN-GAP-20-w8"),
        ("columns.1.width=[8]", "columns.1.width: unknown key$"),
        ("columns.1.ridge=-1", "columns.1.ridge: .*not -1$"),
        ("columns.1.ridge=large", "columns.1.ridge: .*number, not 'large'$"),
        ("columns.1.ridge={select: best}", "columns.1.ridge.select: .*'loo' or 'holdout', not 'best'$"),
        ("columns.1.ridge={select: loo, form: 1.0}", "columns.1.ridge.form: unknown key; did you mean from"),
        ("columns.1.ridge={select: loo, from: 0}", "columns.1.ridge.from: .*greater than 0, not 0$"),
        ("columns.1.ridge={select: loo, from: 1}", "columns.1.ridge: from 1 should be at most to 0.1"),
        ("columns.1.ridge={select: loo, from: 1.0e-300, to: 1.0e+300}", "ridge: from 1e-300 to 1e.300 should be a"),
        ("columns.0.lr=[]", "columns.0.lr: should hold at least 1 item$"),
        ("columns.0.lr=[0.1, -1]", "columns.0.lr.1: .*greater than 0, not -1$"),
        ("columns.0.lr=[0]", "columns.0.lr.0: .*greater than 0, not 0$"),
        ("columns.0.lr=[fast]", "columns.0.lr.0: .*number, not 'fast'$"),
        ("columns.0.lr=0.1", "columns.0.lr: .*a list, not 0.1$"),
        ("columns.0.lr=[.inf]", "columns.0.lr.0: .*finite number, not inf$"),
        ("columns.0.lr=[0.1, 0.1]", "columns.0: lr holds a learning rate twice$"),
    ],
)
def test_a_bad_width_or_learning_rate_is_named_once_as_in_the_yaml(widths_path: Path, assignment: str, words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(str(widths_path), [assignment])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is empty"),
        ("- 1", "should be a mapping"),
        ("a: [", "not YAML at line"),
        ("name: x", "data: Field required"),
        ("name: x\n---\nname: y", "not YAML at line 2"),
        ("name: \a", "not YAML: .*special characters"),
        ("name: !!python/name:os.system x", "not YAML at line 1"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, words: str):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "written.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


PLAIN = """
name: plain
data: {dataset: digits}
columns:
  - {model: cntk, readout: gap, depths: [3], train: {n: 20}}
"""


@pytest.mark.parametrize(
    "text, words",
    [
        (PLAIN + "columns: []\n", "columns is there twice, at lines 4 and 6: keep one"),
        (PLAIN.replace("n: 20", "n: 20, n: 30"), "n is there twice, at lines 5 and 5"),
        (PLAIN.replace("dataset: digits", "dataset: digits, 'dataset': npz"), "dataset is there twice"),
        (PLAIN + "x-a: {b: {c: 1,\n c: 2}}", "c is there twice, at lines 6 and 7"),
        (PLAIN.replace("name: plain", "name: 2024-01-31"), "name: 2024-01-31 is a date in YAML"),
        (PLAIN.replace("n: 20", "n: 2024-13-99"), r"columns\.0\.train\.n: 2024-13-99 is a date in YAML"),
        (PLAIN.replace("[3]", "!!set {3}"), r"columns\.0\.depths: this is a set in YAML"),
        (PLAIN.replace("plain", "!!binary aGk="), "name: aGk= is binary data"),
        (PLAIN + "2024-01-31: x", "written.yaml: 2024-01-31 is a date in YAML"),
        (PLAIN + "order: {1: 2}", r"order\.1: unknown key"),
        (PLAIN + "order: &o {seed: *o}", r"order\.seed: holds itself"),
        (PLAIN.replace("plain", "010"), "name: .*valid string, not 10: put it in quotes"),
        (PLAIN.replace("n: 20", "n: 1:30"), r"columns\.0\.train\.n: .*integer"),
    ],
)
def test_yaml_that_says_two_things_or_no_json_is_refused_by_key(tmp_path: Path, text: str, words: str):
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "written.yaml: " in str(caught.value)


def test_overrides_are_read_alike(config_path: Path):
    with pytest.raises(ConfigError, match=r"--set order=.*: seed is there twice"):
        load_config(str(config_path), ["order={seed: 1, seed: 2}"])
    with pytest.raises(ConfigError, match="--set name=2024-01-31: 2024-01-31 is a date"):
        load_config(str(config_path), ["name=2024-01-31"])
    assert load_config(str(config_path), ["columns.0.train.n=010"]).columns[0].train.n == 10


@pytest.mark.parametrize(
    "text, n",
    [("010", 10), ("0", 0), ("007", 7), ("089", 89), ("1_000", 1000), ("0x10", 16), ("0o17", 15), ("0b11", 3)],
)
def test_integers_are_decimal_unless_they_say_otherwise(tmp_path: Path, text: str, n: int):
    assert load_config(written(tmp_path, f"{PLAIN}order: {{seed: {text}}}")).order.seed == n


ANCHORS = """
name: anchors
_grids: {when: 2024-01-31, deep: &deep [3, 4]}
x-base: &base {model: cntk, depths: *deep, train: &twenty {n: 20}}
data: {dataset: digits}
columns:
  - {<<: *base, readout: gap}
  - {<<: *base, readout: vanilla, depths: [5]}
  - <<: [{ridge: 0.5}, *base]
    readout: gap
    name: third
"""


def test_merge_keys_and_anchors_work_and_keys_aside_hold_them(tmp_path: Path):
    config = load_config(written(tmp_path, ANCHORS))
    assert [(c.readout, c.depths, c.train.n) for c in config.columns] == [
        ("gap", (3, 4), 20),
        ("vanilla", (5,), 20),
        ("gap", (3, 4), 20),
    ]
    assert config.columns[2].ridge == 0.5
    # Only these keys: a misspelt one is still found.
    with pytest.raises(ConfigError, match="colums: unknown key"):
        load_config(written(tmp_path, PLAIN + "colums: []"))


def test_an_override_of_one_column_reaches_no_other_through_an_anchor(tmp_path: Path):
    config = load_config(written(tmp_path, ANCHORS), ["columns.0.train.n=10"])
    assert [c.train.n for c in config.columns] == [10, 20, 20]


def test_a_missing_config_names_the_bundled_ones():
    with pytest.raises(ConfigError, match=r"did you mean digits.*cifar10"):
        load_config("digit")
    with pytest.raises(ConfigError, match="cannot read config"):
        load_config("/")


def test_a_missing_config_may_be_one_without_its_suffix_or_misspelt(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("mine.yaml", "digit.yml", "sub/other.yaml"):
        (tmp_path / name).touch()
    for wrong, meant in [("mine", "mine.yaml"), ("mien.yaml", "mine.yaml"), ("digit", "digit.yml")]:
        with pytest.raises(ConfigError, match=rf"no config {wrong}: did you mean {meant}\? bundled are"):
            load_config(wrong)
    with pytest.raises(ConfigError, match=r"did you mean sub/other\.yaml\?"):
        load_config("sub/other")
    with pytest.raises(ConfigError, match="no config nowhere/mine: bundled are"):
        load_config("nowhere/mine")


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch, config_path: Path):
    monkeypatch.setenv("HOME", str(config_path.parent))
    assert load_config("~/tiny.yaml").name == "tiny"
    with pytest.raises(ConfigError, match="no home folder is known for ~"):
        load_config("~nobody-of-that-name/tiny.yaml")


def test_overrides_reach_lists_and_nested_keys(config_path: Path):
    config = load_config(str(config_path), ["columns.*.depths=[5]", "columns.0.ridge=5e-5", "columns.0.test.n=7"])
    assert [c.depths for c in config.columns] == [(5,)] * 3
    assert config.columns[0].ridge == 5e-5
    assert (config.columns[0].test.source, config.columns[0].test.n) == ("both", 7)


def test_the_resolved_config_loads_to_itself(config_path: Path, tmp_path: Path):
    config = load_config(str(config_path))
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(config.resolved()))
    assert load_config(str(again)).resolved() == config.resolved()
    assert isinstance(config, Config)


def test_fingerprints_ignore_key_order_and_nothing_else():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_misspelt_key_is_named_before_the_one_it_leaves_missing(tmp_path: Path):
    columns = [{"model": "cntk", "readut": "gap", "depths": [3]}]
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"name": "c", "data": {"dataset": "digits"}, "columns": columns}))
    with pytest.raises(ConfigError, match=r"columns\.0\.readut: unknown key; did you mean readout\? \(and 1 more\)"):
        load_config(str(path))


WINDOWED = """
name: windows
data: {dataset: digits}
columns: [{model: %s, readout: %s, depths: [3]}]
"""


@pytest.mark.parametrize("c", [0, 4, 999])
def test_local_averages_are_readouts_of_kernel_columns(tmp_path: Path, c: int):
    path = tmp_path / "windows.yaml"
    path.write_text(WINDOWED % ("cntk", f"lap-{c}"))
    config = load_config(str(path))
    assert config.column_names == [f"CNTK-LAP-{c}"]
    (column,) = config.columns
    assert column.trains_first
    assert column.trains_last
    assert window_of(column.readout) == c  # one name in configs and kernels
    path.write_text(WINDOWED % ("cnn", f"lap-{c}"))
    with pytest.raises(ConfigError, match=r"readout: .*'vanilla' or 'gap'"):
        load_config(str(path))


@pytest.mark.parametrize("readout", ["lap", "lap-04", "lap-1000", "lap-4-nngp", "4", "[lap-4]"])
def test_a_window_that_is_none_is_refused(tmp_path: Path, readout: str):
    path = tmp_path / "windows.yaml"
    path.write_text(WINDOWED % ("cntk", readout))
    with pytest.raises(ConfigError, match=r"readout: .*'lap-C' with C from 0 to 999"):
        load_config(str(path))
