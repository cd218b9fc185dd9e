from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean

import pytest
from matplotlib import image as images

from fakes.browser import FINDINGS, Tab, browser
from fakes.finished_runs import (
    TEST_CASES,
    FakeRuns,
    write_finetuned,
    write_pretrained,
    write_runs,
    write_unscored,
)
from macl.cli import app
from macl.config.settings import FinetuneSettings, TrainingSettings
from macl.data.store import Store
from macl.pages.reported_run import WEIGHTS_DIGEST, read_run
from macl.records import runs
from macl.records.scores import read_rows, write_rows
from macl.stages.evaluate import evaluate
from macl.stages.report import report
from macl.utils.errors import MaclError


class Page(HTMLParser):
    """What a page would load, and its text without markup."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.pieces: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "poster")
        ]

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.pieces))


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeRuns:
    return write_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(fake: FakeRuns, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    unfinished = folder / "unfinished"
    write_unscored(unfinished, Store.open(fake.store), init="scratch", labels="1", finished=False)
    found = [fake.scratch, fake.transferred, unfinished, fake.pretrained]
    return report(
        found, folder / "report.html", notes=["Synthetic discs."], overlays=folder / "overlays"
    )


# ---------------------------------------------------------------- what it says


def test_the_page_is_whole_and_loads_nothing(page: Path) -> None:
    shown = Page(page)
    assert all(target.startswith(("data:", "#")) for target in shown.loads)
    assert not re.search(r"url\(|@import|https?://", shown.source)
    assert "default-src 'none'" in shown.source
    assert sum(target.startswith("data:image/jpeg") for target in shown.loads) == 2 * 9 + 3 * 8 + 4


def test_the_numbers_are_those_of_the_evaluation(fake: FakeRuns, page: Path) -> None:
    numbers = json.loads(page.with_suffix(".json").read_text())
    shown = Page(page).text
    means = {}
    for run, reported in zip((fake.scratch, fake.transferred), numbers["runs"], strict=False):
        summary = json.loads((run / "cases.summary.json").read_text())
        for scores in summary["classes"]:
            for measure in ("dice", "hd95"):
                mean = scores[measure]["mean"]
                assert reported["scores"][scores["class"]][measure]["mean"] == mean
            dice, hd95 = scores["dice"], scores["hd95"]
            assert f"{100 * dice['mean']:.1f} ± {100 * dice['sd']:.1f}" in shown
            assert f"{hd95['mean']:.2f} ± {hd95['sd']:.2f}" in shown
        means[run] = summary["mean"]["dice"]["mean"]
    difference = means[fake.transferred] - means[fake.scratch]
    assert numbers["runs"][1]["dice_against_scratch"] == pytest.approx(difference)
    assert numbers["runs"][0]["dice_against_scratch"] is None
    assert f"+{100 * difference:.1f}" in shown


def test_the_page_opens_with_what_the_numbers_allow(
    fake: FakeRuns, page: Path, tmp_path: Path
) -> None:
    summaries = (run / "cases.summary.json" for run in (fake.scratch, fake.transferred))
    means = [json.loads(path.read_text())["mean"]["dice"] for path in summaries]
    scratch, transferred = (f"{100 * mean['mean']:.1f}" for mean in means)
    shown = Page(page).text
    assert f"With 2 labelled: scratch {scratch}, macl {transferred} (Dice in %, 3 test" in shown
    assert "1 seed). No conclusion: another seed may reverse it (macl benchmark" in shown
    alone = Page(report([fake.scratch, fake.pretrained], tmp_path / "alone.html")).text
    assert f"Dice {scratch} ± {100 * means[0]['sd']:.1f} % over 3 test cases: one run" in alone
    report([fake.pretrained], tmp_path / "none.html")
    assert json.loads((tmp_path / "none.json").read_text())["verdict"] == ""


def test_kinds_data_settings_and_transfer_stand_on_the_page(page: Path) -> None:
    shown = Page(page).text
    for words in (
        "From scratch, 2 labelled", "From macl, 2 labelled", "Pre-training with macl", "unfinished",
        "Synthetic discs.", "Feature spread", "Bottleneck size", "Positives per anchor",
        "Equivariant loss", "Soft Dice loss", "training.learning_rate",
        "augmentation.intensity.gamma", "encoder.levels.0.0.weight", "2 loaded", "3 fresh",
        "64 × 58 to 72 × 64", "1 × 1 mm, 5 mm apart", "ring", "disc",
    ):  # fmt: skip
        assert words in shown, words


def test_the_highest_mean_stands_out_among_runs_with_as_many_labels(
    fake: FakeRuns, tmp_path: Path
) -> None:
    write_finetuned(tmp_path / "more", Store.open(fake.store), init="scratch", shift=1, labels="3")
    found = [fake.scratch, fake.transferred, tmp_path / "more"]
    source = report(found, tmp_path / "report.html").read_text()
    dice = json.loads((tmp_path / "report.json").read_text())["runs"]
    means = [run["scores"]["mean of classes"]["dice"]["mean"] for run in dice]
    assert max(means) == means[2]
    best = re.findall(r'<td class="best">([\d.]+)', source)
    assert best == [f"{100 * means[1]:.1f}"]


def test_volumes_can_be_left_out(fake: FakeRuns, page: Path, tmp_path: Path) -> None:
    without = report([fake.scratch, fake.transferred], tmp_path / "report.html", volumes=False)
    assert "The page holds no volumes" in Page(without).text
    assert 'id="niivue"' not in without.read_text()
    assert "The page holds the volumes of all test cases" in Page(page).text
    assert page.stat().st_size - without.stat().st_size < 1_300_000


def test_the_caveats_are_stated(page: Path) -> None:
    shown = Page(page).text
    assert "One seed per row" in shown
    assert "The test holds 3 cases: few" in shown
    assert "Missed: the structure is there" in shown
    assert "standard deviation over test cases, not over seeds" in shown


def test_what_is_missing_is_named_with_commands_that_exist(page: Path) -> None:
    numbers = json.loads(page.with_suffix(".json").read_text())
    unfinished = numbers["runs"][2]
    assert not unfinished["finished"]
    assert "The run has not been evaluated." in unfinished["missing"]
    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    commands = re.findall(r"<p><code>(macl .*?)</code></p>", page.read_text())
    assert len(commands) == 3
    for command in commands:
        assert shlex.split(html.unescape(command), comments=True)[1] in known


def test_runs_with_different_networks_are_not_like_for_like(
    fake: FakeRuns, page: Path, tmp_path: Path
) -> None:
    caveat = "the runs have different networks"
    assert caveat not in Page(page).text
    wide = FinetuneSettings(backbone_settings={"width": 64})
    write_finetuned(
        tmp_path / "wide", Store.open(fake.store), init="scratch", shift=3, settings=wide
    )
    shown = Page(report([fake.scratch, tmp_path / "wide"], tmp_path / "report.html"))
    assert caveat in shown.text


def test_folds_are_one_row_over_everybody(fake: FakeRuns, tmp_path: Path) -> None:
    store, folds = Store.open(fake.store), (TEST_CASES[:2], TEST_CASES[2:])
    found = []
    for start, init, shift in (("scratch", "scratch", 6), ("macl", f"{fake.pretrained}", 2)):
        for number, cases in enumerate(folds, start=1):
            found.append(tmp_path / f"{start}-fold{number}")
            write_finetuned(found[-1], store, init=init, shift=shift, test_cases=cases)
    shown = Page(report(found, tmp_path / "report.html")).text
    numbers = json.loads((tmp_path / "report.json").read_text())
    whole = [
        json.loads((run / "cases.summary.json").read_text())["mean"]["dice"]["mean"]
        for run in (fake.scratch, fake.transferred)
    ]
    rows = numbers["cross_validations"]
    assert [row["title"] for row in rows] == [
        "From scratch, 2 labelled, 2 folds", "From macl, 2 labelled, 2 folds",
    ]  # fmt: skip
    means = [row["scores"]["mean of classes"]["dice"]["mean"] for row in rows]
    assert means == pytest.approx(whole, abs=1e-5)
    assert rows[1]["dice_against_scratch"] == pytest.approx(whole[1] - whole[0], abs=1e-5)
    assert "The test holds 3 cases" in shown
    assert "is one cross-validation" in shown
    assert "Not like for like" not in shown
    assert f"scratch {100 * whole[0]:.1f}, macl {100 * whole[1]:.1f} (Dice in %, 3 test" in shown
    assert "One case, every run" in shown


def test_a_row_of_folds_says_how_many_people_train_in_each(fake: FakeRuns, tmp_path: Path) -> None:
    store, folds = Store.open(fake.store), (TEST_CASES[:2], TEST_CASES[2:])
    for number, cases in enumerate(folds, start=1):
        run = tmp_path / f"fold{number}"
        write_finetuned(run, store, init="scratch", shift=2, test_cases=cases)
        people = tuple(f"person{index}" for index in range(number))
        record = runs.read_record(run).model_copy(update={"labels": "100%", "people": people})
        runs.write_record(run, record)
    report([tmp_path / "fold1", tmp_path / "fold2"], tmp_path / "report.html")
    numbers = json.loads((tmp_path / "report.json").read_text())
    (row,) = numbers["cross_validations"]
    assert row["title"] == "From scratch, 1 to 2 people (100%) labelled, 2 folds"


def test_runs_whose_tests_overlap_are_no_folds(fake: FakeRuns, tmp_path: Path) -> None:
    store = Store.open(fake.store)
    for number, cases in enumerate((TEST_CASES[:2], TEST_CASES[1:])):
        folder = tmp_path / f"run{number}"
        write_finetuned(folder, store, init="scratch", shift=2, test_cases=cases)
    page = report([tmp_path / "run0", tmp_path / "run1"], tmp_path / "report.html")
    assert json.loads(page.with_suffix(".json").read_text())["cross_validations"] == []
    assert "Not like for like: the runs were tested on different cases." in Page(page).text


def test_overlays_are_written_as_pictures_too(page: Path) -> None:
    pictures = sorted((page.parent / "overlays").iterdir())
    assert len(pictures) == 6
    assert {picture.stem.split("-")[1] for picture in pictures} == {"best", "median", "worst"}
    for picture in pictures:
        height, width, _ = images.imread(picture).shape
        assert width > 2 * height


def test_best_and_worst_are_so_by_dice(fake: FakeRuns, page: Path) -> None:
    scores = read_run(fake.transferred).scores
    assert scores
    means = scores.dice_by_case()
    assert set(means) == set(TEST_CASES)
    shown = Page(page).text
    for role, best in (("Best case", max), ("Worst case", min)):
        case = best(means, key=lambda name: means[name])
        assert f"{role} · {case}, Dice {100 * means[case]:.1f} %" in shown


def test_runs_on_slices_and_on_volumes_stand_side_by_side(fake: FakeRuns, tmp_path: Path) -> None:
    store = Store.open(fake.store)
    volumes = FinetuneSettings(dims=3, training=TrainingSettings(size=(4, 56, 40)))
    found = [fake.scratch, fake.transferred]
    for init, shift in (("scratch", 5), (f"{fake.pretrained} (0123456789ab)", 1)):
        found.append(tmp_path / f"volumes{shift}")
        write_finetuned(found[-1], store, init=init, shift=shift, settings=volumes)
    page = report(found, tmp_path / "report.html")
    numbers = json.loads(page.with_suffix(".json").read_text())["runs"]
    assert [run["dims"] for run in numbers] == [2, 2, 3, 3]
    assert [run["title"] for run in numbers] == [
        "From scratch, 2 labelled, 2D", "From macl, 2 labelled, 2D",
        "From scratch, 2 labelled, 3D", "From macl, 2 labelled, 3D",
    ]  # fmt: skip
    dice = [run["scores"]["mean of classes"]["dice"]["mean"] for run in numbers]
    differences = [run["dice_against_scratch"] for run in numbers]
    assert differences[::2] == [None, None]
    assert differences[1::2] == pytest.approx([dice[1] - dice[0], dice[3] - dice[2]])
    shown = Page(page)
    assert "4 × 56 × 40 3D" in shown.text
    assert "256 × 256 2D" in shown.text
    assert shown.tags.count("img") == 4 * 9 + 2 * 8 + 2 * 8 + 6


# ---------------------------------------------------------------- what may go wrong


def test_everything_is_escaped(fake: FakeRuns, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>&\"'"
    run = tmp_path / "a run & <u>"
    shutil.copytree(fake.scratch, run)
    record = runs.read_record(run).model_copy(
        update={"classes": ("background", evil, "disc"), "recipe": evil}
    )
    runs.write_record(run, record)
    with (run / runs.LOG).open("a") as log:
        log.write(json.dumps({"step": 61, "epoch": 8, "loss": 1.0, evil: 2.0}) + "\n")
    rows = (run / runs.SCORES).read_text().replace("ring", '"' + evil.replace('"', '""') + '"')
    (run / runs.SCORES).write_text(rows)
    (run / "cases.summary.json").unlink()
    shown = Page(report([run], tmp_path / "report.html", notes=[evil]))
    assert "u" not in shown.tags
    assert "x" not in shown.loads
    assert evil in shown.text


def test_a_run_whose_store_is_gone_is_still_shown(fake: FakeRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fake.scratch, run)
    runs.write_record(
        run, runs.read_record(run).model_copy(update={"store": str(tmp_path / "gone")})
    )
    shown = Page(report([run], tmp_path / "report.html"))
    assert "is not there any more" in shown.text
    assert "Mean of classes" in shown.text
    assert "img" not in shown.tags


def test_a_store_of_another_version_is_named_with_what_to_do(
    fake: FakeRuns, tmp_path: Path
) -> None:
    run, store = tmp_path / "run", tmp_path / "old.store"
    shutil.copytree(fake.scratch, run)
    store.mkdir()
    (store / "store.json").write_text('{"format": "macl-store", "version": 1}')
    runs.write_record(run, runs.read_record(run).model_copy(update={"store": str(store)}))
    shown = Page(report([run], tmp_path / "report.html"))
    assert re.search(r"version 1.*prepare.* again", shown.text)
    assert "img" not in shown.tags


def test_a_store_that_changed_is_not_drawn_over(fake: FakeRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fake.scratch, run)
    runs.write_record(run, runs.read_record(run).model_copy(update={"store_checksum": "0" * 64}))
    shown = Page(report([run], tmp_path / "report.html"))
    assert "is not the one this run was trained on" in shown.text
    assert "img" not in shown.tags


def test_a_mask_that_is_broken_is_named_and_the_others_are_drawn(
    fake: FakeRuns, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(fake.scratch, run)
    (run / runs.PREDICTIONS / f"{TEST_CASES[0]}.nii.gz").write_bytes(b"broken")
    shown = Page(report([run], tmp_path / "report.html"))
    assert re.search(rf"case is not drawn: .*{TEST_CASES[0]}", shown.text)
    assert shown.tags.count("img") == 6 + 8


@pytest.mark.parametrize("broken", [runs.SCORES, runs.TRANSFER, "cases.summary.json"])
def test_a_broken_file_is_named_and_the_rest_is_shown(
    fake: FakeRuns, tmp_path: Path, broken: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(fake.scratch, run)
    (run / broken).write_text("{ half")
    shown = Page(report([run], tmp_path / "report.html")).text
    assert re.search(rf"{broken} should be .*, but cannot be read", shown)
    assert "Cross-entropy" in shown


def test_a_run_that_has_just_begun(fake: FakeRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_pretrained(run, Store.open(fake.store), steps=1, finished=False)
    (run / runs.LOG).write_text('{"step": 1, "epo')
    shown = Page(report([run], tmp_path / "report.html"))
    assert "There is no log yet" in shown.text
    assert "unfinished" in shown.text


def test_runs_that_are_alike_get_titles_of_their_own(fake: FakeRuns, tmp_path: Path) -> None:
    store = Store.open(fake.store)
    for seed in (0, 1):
        write_unscored(tmp_path / f"seed{seed}", store, init="scratch", seed=seed)
    write_unscored(tmp_path / "again", store, init="scratch", seed=1)
    found = [tmp_path / name for name in ("seed0", "seed1", "again")]
    report(found, tmp_path / "report.html")
    titles = [run["title"] for run in json.loads((tmp_path / "report.json").read_text())["runs"]]
    assert titles == [
        "From scratch, 2 labelled, seed 0",
        "From scratch, 2 labelled, seed 1, seed1",
        "From scratch, 2 labelled, seed 1, again",
    ]


def test_a_table_without_a_summary_is_averaged_again(fake: FakeRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fake.scratch, run)
    before = read_run(run).scores
    (run / "cases.summary.json").unlink()
    after = read_run(run).scores
    assert before
    assert after
    for name in before.classes:
        assert after.spread("dice", name).mean == pytest.approx(
            before.spread("dice", name).mean, abs=1e-5
        )


def test_scores_of_scans_that_the_run_was_trained_on_are_left_out(
    fake: FakeRuns, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(fake.scratch, run)
    said = json.loads((run / "run.json").read_text())
    scored = sorted({row.case for row in read_rows(run / runs.SCORES)})
    changes = {"cases": [*said["cases"], scored[0]], "test_cases": scored[1:]}
    (run / "run.json").write_text(json.dumps(said | changes))
    shown = Page(report([run], tmp_path / "page.html")).text
    assert f"was trained on {scored[0]}, whose scores are left out" in shown
    assert f"over {len(scored) - 1} test cases" in shown
    means = read_run(run).scores
    assert means
    assert scored[0] not in means.dice_by_case()
    own = [row.dice for row in means.rows]
    assert means.mean("dice").mean == pytest.approx(fmean(own))
    (run / "run.json").write_text(json.dumps(said | {"cases": scored, "test_cases": []}))
    assert (
        "scores only scans that the run was trained on"
        in Page(report([run], tmp_path / "none.html")).text
    )


def test_a_test_case_without_scores_is_named(fake: FakeRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fake.scratch, run)
    rows = read_rows(run / runs.SCORES)
    lacking = rows[0].case
    write_rows(run / runs.SCORES, [row for row in rows if row.case != lacking])
    shown = Page(report([run, fake.transferred], tmp_path / "page.html")).text
    assert f"1 of 3 test cases have no scores ({lacking})" in shown
    assert "Not like for like: the runs were tested on different cases." in shown


def test_the_paper_s_convention_is_told_apart(fake: FakeRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(fake.scratch, run)
    evaluate(run / runs.PREDICTIONS, fake.store, run / runs.SCORES, convention="paper")
    shown = Page(report([run, fake.scratch], tmp_path / "report.html")).text
    pooled = json.loads((run / "cases.summary.json").read_text())["mean"]["dice"]["mean"]
    assert f"{100 * pooled:.1f}" in shown
    assert "pooled over all slices of all cases" in shown
    assert "Distances are per slice and in pixels" in shown
    assert "the runs were scored by different conventions" in shown
    numbers = json.loads((tmp_path / "report.json").read_text())["runs"][0]
    assert (numbers["convention"], numbers["unit"]) == ("paper", "pixel")
    assert numbers["scores"]["ring"]["dice"]["standard_deviation"] is None


@pytest.mark.parametrize(
    ("found", "out", "words"),
    [
        ([], "report.html", "no run"),
        (["nothing"], "report.html", "does not exist"),
        (["store"], "report.html", "is not a run"),
        (["scratch"], "report.pdf", r"ends in \.html"),
        (["scratch"], ".", r"ends in \.html"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    fake: FakeRuns, tmp_path: Path, found: list[str], out: str, words: str
) -> None:
    with pytest.raises(MaclError, match=words):
        report([fake.store.parent / name for name in found], tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_the_pre_training_behind_a_start_is_named_by_its_method(
    fake: FakeRuns, tmp_path: Path
) -> None:
    assert read_run(fake.transferred).start == "macl"
    run = tmp_path / "run"
    write_unscored(run, Store.open(fake.store), init="weights/macl_chd.pth (0123456789ab)")
    assert read_run(run).start == "macl_chd.pth"
    assert WEIGHTS_DIGEST.sub("", "a (b) (0123456789ab)") == "a (b)"


# ---------------------------------------------------------------- how it looks


def contrast(first: str, second: str) -> float:
    """The ratio of luminances by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_stands_out_in_light_and_dark(page: Path) -> None:
    blocks = re.findall(r":root \{(.*?)\}", page.read_text(), re.DOTALL)
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]
    assert len(themes[:2]) == 2
    for theme in themes[:2]:
        pairs = [(ink, "paper") for ink in ("ink", "soft", "accent", "warn")]
        pairs += [("ink", "warn-soft"), ("warn", "warn-soft"), ("accent", "accent-soft")]
        for ink, ground in pairs:
            assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        assert contrast(theme["quiet"], theme["paper"]) >= 3


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 768, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_it_is_whole_quiet_and_not_too_wide(
    page: Path, tab: Tab, width: int, dark: bool
) -> None:
    tab.open(page, width, dark=dark)
    seen = tab.run(FINDINGS)
    assert seen["width"] == width
    assert tab.complaints == []
    assert tab.requests == []
    assert seen["without_alt"] == seen["dangling"] == 0
    assert len(seen["images"]) == 46
    assert all(natural > 0 and shown > 50 for natural, shown in seen["images"])
    assert seen["scroll_width"] <= width
    assert seen["wide"] == []


@pytest.mark.browser
def test_in_a_browser_it_is_drawn_as_it_is(page: Path, tab: Tab, tmp_path: Path) -> None:
    tab.open(page, 1280, 1600)
    pixels = images.imread(tab.screenshot(tmp_path / "page.png"))
    assert pixels.shape[:2] == (1600, 1280)
    assert len({tuple(pixel) for pixel in pixels[::16, ::16, :3].reshape(-1, 3).round(2)}) > 50


@pytest.mark.browser
def test_the_mean_is_in_sight_on_a_telephone(page: Path, tab: Tab) -> None:
    tab.open(page, 390)
    right = tab.run("document.querySelector('.results td').getBoundingClientRect().right")
    assert 0 < right <= 390
    assert tab.run("document.querySelector('.results td').textContent").startswith("46.1")


@pytest.mark.browser
def test_a_table_sorts_by_click_and_by_keyboard(page: Path, tab: Tab) -> None:
    rows = (
        "[...document.querySelectorAll('.results tbody tr')].map(row => row.cells[1].textContent)"
    )
    mean = ".results thead th:nth-child(2)"
    tab.open(page)
    low, high = tab.run(rows)
    tab.click(f"{mean} button")
    assert tab.run(rows) == [low, high]
    assert tab.run(f"document.querySelector('{mean}').getAttribute('aria-sort')") == "ascending"
    tab.press("Enter")
    assert tab.run(rows) == [high, low]
    assert tab.run(f"document.querySelector('{mean}').getAttribute('aria-sort')") == "descending"


SHOWN = "document.querySelector('[data-part=viewer]').ariaBusy === 'false'"
NAME = "document.querySelector('[data-part=name]').textContent"
COLOURS = """(() => {
  viewer.niivue.drawScene();
  const { gl } = viewer.niivue;
  const pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
  gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  let coloured = 0, bright = 0;
  for (let at = 0; at < pixels.length; at += 4) {
    const [red, green, blue] = pixels.subarray(at, at + 3);
    bright += red > 20;
    coloured += Math.max(red, green, blue) - Math.min(red, green, blue) > 30;
  }
  return [coloured, bright];
})()"""  # noqa: E501


@pytest.mark.browser
def test_a_dot_opens_its_case_by_click_and_by_keyboard(
    fake: FakeRuns, page: Path, tab: Tab
) -> None:
    scores = read_run(fake.transferred).scores
    assert scores
    dice = {row.case: row.dice for row in scores.rows if row.class_name == "ring"}
    ranked = sorted(dice, key=dice.__getitem__)
    tab.open(page, 700, 600)
    tab.click(f".dot[data-case={ranked[-1]}][data-run^='From macl']")
    tab.wait_for(SHOWN)
    assert tab.run(NAME) == ranked[-1]
    assert tab.run("document.querySelector('[data-part=run]').value") == "From macl, 2 labelled"
    tab.press("Escape")
    assert not tab.run("document.getElementById('case').open")
    # The track is one stop of the Tab key, at its lowest case; the arrows go along it.
    tab.run('document.querySelector(\'.dot[data-run^="From macl"][tabindex="0"]\').focus()')
    tab.press("ArrowRight")
    readout = "document.querySelector('.readout').textContent"
    assert tab.run(readout) == f"{ranked[1]}: {100 * dice[ranked[1]]:.1f}"
    tab.press("Enter")
    tab.wait_for(SHOWN)
    assert tab.run(NAME) == ranked[1]
    assert tab.complaints == []
    assert tab.requests == []


@pytest.mark.browser
def test_the_viewer_scrolls_and_shows_truth_prediction_and_difference(page: Path, tab: Tab) -> None:
    tab.open(page, 700, 600)
    tab.click("[data-open-lowest]")
    tab.wait_for(SHOWN)
    first, slices = tab.run("[viewer.slice, viewer.size[2]]")
    tab.press("ArrowUp")
    assert tab.run("viewer.slice") == first + 1
    number = "document.querySelector('[data-part=slice-number]').textContent"
    assert tab.run(number) == f"{first + 2} of {slices}"
    tab.turn_wheel("[data-part=canvas]", 100)
    tab.wait_for(f"viewer.slice !== {first + 1}")
    tab.run("viewer.goTo(0)")
    tab.press("ArrowDown")
    assert tab.run("viewer.slice") == 0
    tab.run(f"viewer.goTo({first})")
    coloured = {}
    for key, layer in zip("1234", ("scan", "truth", "prediction", "difference"), strict=True):
        tab.press(key)
        coloured[layer], bright = tab.run(COLOURS)
        assert bright > 1000
    assert coloured["scan"] == 0
    assert min(coloured["truth"], coloured["prediction"], coloured["difference"]) > 1000
    tab.press("ArrowRight")
    tab.wait_for(f"{SHOWN} && {NAME} !== 'patient006'")
    assert tab.complaints == []
    assert tab.requests == []


@pytest.mark.browser
def test_without_webgl_the_slices_are_shown(page: Path, tab: Tab) -> None:
    tab.open(page)
    tab.run("HTMLCanvasElement.prototype.getContext = () => null")
    tab.click("figure.overlay [data-open]")
    assert tab.run("document.querySelector('[data-part=viewer]').hidden")
    assert tab.run("document.querySelectorAll('#case [data-part=slices] img').length") == 3
    assert tab.complaints == []


@pytest.mark.browser
def test_nothing_but_the_page_s_own_scripts_can_run(page: Path, tab: Tab, tmp_path: Path) -> None:
    source = page.read_text().replace("</main>", "<script>window.strange = 1</script></main>")
    (tmp_path / "changed.html").write_text(source)
    tab.open(tmp_path / "changed.html")
    assert tab.run("window.strange") is None
    assert "Content Security Policy" in " ".join(tab.complaints)
