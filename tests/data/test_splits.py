from __future__ import annotations

from pathlib import Path

import pytest

from fakes.index import hearts, stored_case, write
from macl.data.resolved_split import find_test_people, resolve_split
from macl.data.splits import Split, group_of, read_split, split_names, write_split
from macl.data.store import Store
from macl.stages.split import choose
from macl.utils.errors import MaclError


def opened(tmp_path: Path, *cases: tuple[str, str, bool]) -> Store:
    return Store.open(write(tmp_path / "a.store", [stored_case(*case) for case in cases]))


@pytest.fixture
def brains(tmp_path: Path) -> Store:
    """Three people: one with two labelled sides, one with one of two, one without labels."""
    labels = {1: True, 2: True, 3: True, 4: False, 5: False, 7: True}
    return opened(
        tmp_path,
        *((f"brain_{n:03d}", f"brain_{n:03d}", labelled) for n, labelled in labels.items()),
    )


def by_person(**changes: object) -> Split:
    values = {
        "name": "mine",
        "group": "consecutive-pair",
        "test": ("brain_pair001",),
        "budgets": {"1": ("brain_pair002",)},
    }
    return Split.model_validate(values | changes)


@pytest.mark.parametrize("number", range(1, 9))
def test_consecutive_numbers_are_one_person(number: int) -> None:
    assert (
        group_of(f"hippocampus_{number:03d}", "consecutive-pair")
        == f"hippocampus_pair{-(-number // 2):03d}"
    )
    assert group_of(f"hippocampus_{number:03d}", "patient") == f"hippocampus_{number:03d}"


def test_a_pair_needs_a_number() -> None:
    with pytest.raises(MaclError, match="no number to pair by"):
        group_of("anna", "consecutive-pair")


def test_a_split_becomes_cases(brains: Store) -> None:
    resolved = resolve_split(by_person(), brains)
    assert resolved.test == ("brain_pair001",)
    assert resolved.test_cases == ("brain_001", "brain_002")
    assert resolved.labelled_cases("1") == ("brain_003",), "the other side has no label"
    assert resolved.pretraining_cases == ("brain_003", "brain_004", "brain_005", "brain_007")
    assert resolved.people(resolved.pretraining_cases) == (
        "brain_pair002",
        "brain_pair003",
        "brain_pair004",
    )


def test_validation_people_are_pretrained_on_but_not_fine_tuned_on(brains: Store) -> None:
    split = by_person(validation=("brain_pair004",), budgets={"2": ("brain_pair002",)})
    resolved = resolve_split(split, brains)
    assert resolved.validation_cases == ("brain_007",)
    assert "brain_007" in resolved.pretraining_cases
    assert resolved.labelled_cases("2") == ("brain_003",)


def test_unlabelled_scans_of_test_people_are_not_pretrained_on(brains: Store) -> None:
    resolved = resolve_split(
        by_person(test=("brain_pair002",), budgets={"1": ("brain_pair001",)}), brains
    )
    assert resolved.test_cases == ("brain_003",)
    assert "brain_004" not in resolved.pretraining_cases


def test_unlabelled_cases_are_of_no_test_or_validation_person(brains: Store) -> None:
    """All others are, whether they have labels or not, but those that the budget uses."""
    resolved = resolve_split(by_person(), brains)
    assert resolved.unlabelled_cases("1") == ("brain_004", "brain_005", "brain_007")
    validating = {"validation": ("brain_pair004",), "budgets": {"2": ("brain_pair002",)}}
    resolved = resolve_split(by_person(**validating), brains)
    assert resolved.unlabelled_cases("2") == ("brain_004", "brain_005")
    others = ((f"brain_{n:03d}", f"brain_{n:03d}", True) for n in (1, 3, 7))
    labelled = opened(brains.path.parent / "b", *others)
    assert resolve_split(by_person(**validating), labelled).unlabelled_cases("2") == ()


def test_a_split_may_lack_a_test_or_budgets(brains: Store) -> None:
    everybody = resolve_split(by_person(test=()), brains)
    assert everybody.test_cases == ()
    assert everybody.pretraining_cases == tuple(brains.cases)
    apart = resolve_split(by_person(budgets={}), brains)
    assert apart.pretraining_cases == ("brain_003", "brain_004", "brain_005", "brain_007")
    with pytest.raises(MaclError, match="no label budget '1'; it has all"):
        apart.labelled_cases("1")


def test_an_unknown_budget_is_answered_with_the_known_ones(brains: Store) -> None:
    with pytest.raises(MaclError, match=r"no label budget '10%'; it has 1, all: name one"):
        resolve_split(by_person(), brains).labelled_cases("10%")


def test_people_the_store_lacks_are_named(brains: Store) -> None:
    with pytest.raises(MaclError, match=r"names brain_pair009 for the test.*does not hold"):
        resolve_split(by_person(test=("brain_pair001", "brain_pair009")), brains)


def test_test_and_training_need_labels(brains: Store) -> None:
    with pytest.raises(MaclError, match=r"needs labels of brain_pair003 for the test"):
        resolve_split(by_person(test=("brain_pair003",)), brains)
    with pytest.raises(MaclError, match=r"needs labels of brain_pair003 for the budget 1"):
        resolve_split(by_person(budgets={"1": ("brain_pair003",)}), brains)


def test_nobody_trains_and_tests(brains: Store) -> None:
    with pytest.raises(MaclError, match=r"scans of 1 test people.*brain_pair001.*--allow-overlap"):
        resolve_split(by_person(budgets={"2": ("brain_pair001", "brain_pair002")}), brains)


def test_nobody_trains_and_validates(brains: Store) -> None:
    with pytest.raises(MaclError, match="both in a label budget and in validation"):
        resolve_split(
            by_person(validation=("brain_pair002",), budgets={"2": ("brain_pair002",)}),
            brains,
            allow_overlap=True,
        )


def test_a_person_split_over_two_parts_by_case_is_found(
    brains: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    by_case = by_person(identify_by="number", test=("1",), budgets={"1": ("2",)})
    with pytest.raises(MaclError, match="brain_pair001"):
        resolve_split(by_case, brains)
    resolved = resolve_split(by_case, brains, allow_overlap=True)
    assert resolved.labelled_cases("1") == ("brain_002",)
    assert "too good" in capsys.readouterr().err


def test_budgets_that_are_not_nested_are_said(
    brains: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    resolve_split(
        by_person(budgets={"few": ("brain_pair002",), "more": ("brain_pair002", "brain_pair004")}),
        brains,
    )
    assert capsys.readouterr().err == ""
    store = opened(brains.path.parent / "b", *((f"b_{n}", f"b_{n}", True) for n in range(5)))
    resolve_split(
        Split(name="x", test=("b_0",), budgets={"few": ("b_1",), "more": ("b_2", "b_3")}), store
    )
    assert "the budget more lacks 1 people of the budget few" in capsys.readouterr().err


def test_numbers_that_two_patients_share_are_refused(tmp_path: Path) -> None:
    store = opened(tmp_path, ("ct_1", "ct_1", True), ("mr_1", "mr_1", True), ("mr_2", "mr_2", True))
    with pytest.raises(MaclError, match=r"number 1, which in .* is ct_1, mr_1"):
        resolve_split(
            Split(name="x", identify_by="number", test=("1",), budgets={"1": ("2",)}), store
        )


def test_places_count_labelled_patients_only_and_all_of_them(tmp_path: Path) -> None:
    cases = [("a", "a", True), ("b", "b", False), ("c", "c", True)]
    split = Split(
        name="x", identify_by="index", labelled_patients=2, test=("1",), budgets={"1": ("0",)}
    )
    resolved = resolve_split(split, opened(tmp_path, *cases))
    assert (resolved.test_cases, resolved.labelled_cases("1")) == (("c",), ("a",))
    with pytest.raises(MaclError, match=r"numbers 2 labelled patients, but the store .* has 1"):
        resolve_split(split, opened(tmp_path / "less", *cases[:2]))


def test_overlap_names_the_test_people_seen(brains: Store) -> None:
    resolved = resolve_split(by_person(), brains)
    assert find_test_people(["brain_002", "brain_003", "anna", "la_001"], resolved) == (
        "brain_pair001",
    )
    assert find_test_people(["brain_003"], resolved) == ()


def test_a_split_file_survives_writing_and_reading(tmp_path: Path) -> None:
    write_split(tmp_path / "mine.json", by_person())
    assert read_split(tmp_path / "mine.json") == by_person()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"budgets": {"3": ("a",)}}, "should count 3 people, but 1 train and 0 validate"),
        ({"budgets": {"10%": ()}}, "names nobody to train on"),
        ({"test": ("a", "a")}, "test names a twice"),
        ({"identify_by": "index"}, "labelled_patients is needed"),
        ({"test": (), "budgets": {}}, "needs test people or a budget"),
        ({"tset": ("a",)}, "tset"),
    ],
)
def test_a_broken_split_file_is_a_sentence(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    import json

    (tmp_path / "mine.json").write_text(json.dumps(by_person().model_dump() | changes))
    with pytest.raises(MaclError, match=sentence):
        read_split(tmp_path / "mine.json")


def test_something_else_is_not_a_split_file(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(MaclError, match="not a split file of version 1"):
        read_split(tmp_path / "run.json")
    with pytest.raises(
        MaclError, match=r"known: hippocampus-person, paper/acdc,.* or a \.json file"
    ):
        read_split("acdc")


def test_every_shipped_split_reads_and_goes_by_its_name() -> None:
    assert {f"paper/{name}" for name in ("acdc", "mmwhs", "chaos", "hvsmr", "isic2018")} < set(
        split_names()
    )
    for name in split_names():
        split = read_split(name)
        assert split.name == name
        assert split.source
        for people in split.budgets.values():
            assert set(people).isdisjoint(split.test)


def test_the_papers_acdc_split_on_acdcs_people(tmp_path: Path) -> None:
    resolved = resolve_split(read_split("paper/acdc"), Store.open(hearts(tmp_path / "acdc.store")))
    assert len(resolved.test) == 20
    assert resolved.test[0] == "patient005"
    assert len(resolved.test_cases) == 40
    assert len(resolved.labelled_cases("8")) == 16
    assert resolved.people(resolved.labelled_cases("8"))[-1] == "patient095"
    assert len(resolved.people(resolved.pretraining_cases)) == 80


def test_the_papers_hippocampus_split_is_refused_for_its_people_on_both_sides(
    tmp_path: Path,
) -> None:
    # Of the data set's numbers only those near the start matter here: place i must not be number i.
    store = opened(
        tmp_path, *((f"hippocampus_{n:03d}", f"hippocampus_{n:03d}", True) for n in range(1, 261))
    )
    with pytest.raises(MaclError, match="use a split made by person"):
        resolve_split(read_split("paper/msd_hippocampus"), store)


def test_the_hippocampus_split_by_person_is_the_one_that_macl_draws() -> None:
    shipped = read_split("hippocampus-person")
    assert (len(shipped.test), *map(len, shipped.budgets.values())) == (26, 14, 36, 144)
    labelled = {*shipped.test, *shipped.budgets["100%"]}
    drawn = choose(labelled, test="26", budgets="10%,25%,100%", seed=0)
    assert drawn == {"test": shipped.test, "validation": (), **shipped.budgets}


def with_copies(store: Store, **of: str) -> Store:
    """The store, with the images of some cases being those of others."""
    cases = {case.name: case for case in store.index.cases}
    for copy, original in of.items():
        arrays = {**cases[copy].arrays, "image": cases[original].arrays["image"]}
        cases[copy] = cases[copy].model_copy(update={"arrays": arrays})
    return Store(store.path, store.index.model_copy(update={"cases": tuple(cases.values())}))


def test_a_test_scan_under_another_name_trains_nothing(
    brains: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store = with_copies(brains, brain_003="brain_001", brain_005="brain_002")
    split = by_person(budgets={"2": ("brain_pair002", "brain_pair004")})
    resolved = resolve_split(split, store)
    assert resolved.pretraining_cases == ("brain_004", "brain_007")
    assert resolved.labelled_cases("2") == ("brain_007",)
    assert resolved.test_cases == ("brain_001", "brain_002")
    assert "brain_003 (of brain_001), brain_005 (of brain_002)" in capsys.readouterr().err


def test_copies_among_training_or_among_test_scans_stay(
    brains: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store = with_copies(brains, brain_002="brain_001", brain_005="brain_004")
    assert resolve_split(by_person(), store) == resolve_split(by_person(), brains)
    assert "Left out" not in capsys.readouterr().err


def test_copies_of_validation_and_reserved_scans_train_and_test_nothing(
    brains: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """The person 2 trains, 1 tests; 3 has no labels; 4 validates, then is reserved."""
    store = with_copies(brains, brain_003="brain_007", brain_005="brain_007")
    split = by_person(validation=("brain_pair004",), budgets={"2": ("brain_pair002",)})
    resolved = resolve_split(split, store)
    assert resolved.validation_cases == ("brain_007",)
    assert resolved.pretraining_cases == ("brain_004", "brain_007")
    assert resolved.all_labelled_cases == resolved.budget_cases["2"] == ()
    assert "copies of validation scans under other names: brain_003" in capsys.readouterr().err
    store = with_copies(brains, brain_002="brain_007", brain_003="brain_007")
    resolved = resolve_split(by_person(reserved=("brain_pair004",)), store)
    assert resolved.test_cases == ("brain_001",)
    assert resolved.pretraining_cases == ("brain_004", "brain_005")
    assert resolved.budget_cases["1"] == ()
    assert "copies of reserved scans under other names: brain_002" in capsys.readouterr().err


def test_allowed_overlap_keeps_copies(brains: Store) -> None:
    store = with_copies(brains, brain_003="brain_001")
    assert "brain_003" in resolve_split(by_person(), store, allow_overlap=True).pretraining_cases
