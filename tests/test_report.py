"""The report: marked tables, runs as reproduce.py leaves them, seeds, and the documents that it writes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import reproduce
from data.labels import NINE
from experiments import report
from tests.damage import refuses
from tests.fixtures import contents

HOME = report.HOME
DOCUMENTS = [HOME / "README.md", *sorted((HOME / "docs").glob("*.md"))]
LINKING = [*DOCUMENTS, HOME / "checkpoints" / "README.md", *sorted((HOME / "results").rglob("*.md"))]


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_run(folder: Path, seed: int, overall: float) -> None:
    """A run of one stage and two rows, in the files of reproduce.py."""
    config = {
        "dataset": "helen",
        "images": 4,
        "seed": seed,
        "config": {"window_margin": 0.0, "crop_size": 81},
        "recipe": {"batch_size": 2},
        "optimisation": {"epochs": 2, "lr": {"coarse": 0.1}, "optimizer": "adam", "schedule": "halve"},
        "environment": {"device": "cpu, 1 threads"},
    }
    write_json(folder / "stage1" / "config.json", config)
    row = {"epoch": 0, "loss": 2.0, "f1": 0.5, "strict": 0.4, "train_s": 50.0, "val_s": 10.0}
    lines = [json.dumps(row), json.dumps({**row, "epoch": 1, "f1": 0.6})]
    (folder / "stage1" / "log.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "command.txt").write_text(f"python reproduce.py --seed {seed}\n")
    scores = {
        "paper": {**dict.fromkeys(NINE.groups, 0.7), "overall": overall},
        "strict": {**dict.fromkeys(NINE.foreground, 0.8), "inner_mouth": None, "mean": 0.8},
        "images": 1,
        "dataset": "helen",
    }
    for title in list(reproduce.ROWS)[:2]:
        write_json(folder / "scores" / "test" / reproduce.slug(title) / "scores.json", scores)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two seeds of a run, and an experiment."""
    root = tmp_path / "results"
    for seed, overall in enumerate((0.90, 0.92)):
        write_run(root / f"mine-seed{seed}", seed, overall)
    (root / "experiments").mkdir()
    shutil.copy(HOME / "results" / "experiments" / "hidden_parts.json", root / "experiments")
    return root


def test_marked_tables_are_written_again_and_the_rest_of_a_text_stays():
    text = "before\n<!-- table: a/test/paper -->\nold\nrows\n<!-- end -->\nafter\n"
    new = report.with_tables(text, {"a/test/paper": "| new |\n"}, Path("README.md"))
    assert new == "before\n<!-- table: a/test/paper -->\n| new |\n<!-- end -->\nafter\n"
    assert report.with_tables(new, {"a/test/paper": "| new |\n"}, Path("README.md")) == new
    with refuses("README.md: no results for the tables a/test/paper: there are b"):
        report.with_tables(text, {"b": ""}, Path("README.md"))


def test_runs_as_reproduce_leaves_them_and_trainings_of_other_parsers_make_tables(results):
    other = shutil.copytree(results / "mine-seed0" / "stage1", results / "mine-seed0" / "2-256px")
    config = json.loads((other / "config.json").read_text())
    write_json(other / "config.json", {**config, "config": {"size": 256}})
    (results / "benchmark").mkdir()
    (results / "benchmark" / "benchmark.md").write_text("# Benchmark\n")
    assert report.main(["--results", str(results)]) == 0
    written = contents(results)
    assert report.main(["--results", str(results)]) == 0
    assert contents(results) == written  # a second report changes nothing
    text = (results / "README.md").read_text()
    assert "[benchmark](benchmark/benchmark.md)" in text
    first, second = list(reproduce.ROWS)[:2]
    assert f"| [mine](#mine) | {second} | 0.9100 ± 0.0141 | 0.8000 ± 0.0000 |" in text
    assert text.index(f"| {first} |") < text.index(f"| {second} |")
    assert f"| mine, 2 seeds: {second} | 0.7000 |" in text  # Table 2: ours, then the paper's
    assert "| *paper: STN-iCNN* | 0.895 |" in text
    assert "## mine\n\n```bash\npython reproduce.py --seed 0\npython reproduce.py --seed 1\n```" in text
    assert "## experiments/hidden_parts\n\n| hidden |" in text
    assert "| stage1 | 4 | 2/2 | 2 | adam, 0.1, halve | 81 pixels | f1 0.6000, epoch 2 | 2.0 |" in text
    assert "| 2-256px | 4 | 2/2 | 2 | adam, 0.1, halve | whole photo, 256 pixels | f1 0.6000, epoch 2 | 2.0 |" in text


def test_each_table_has_one_place(results, tmp_path):
    document = tmp_path / "page.md"
    names = ("mine/test/seeds", "paper/helen", "mine-seed0/test/paper")
    document.write_text("".join(f"<!-- table: {name} -->\n<!-- end -->\n" for name in names))
    texts = report.report(results, [document])
    first = next(iter(reproduce.ROWS))
    assert f"| {first} | 0.9100 ± 0.0141 | 0.8000 ± 0.0000 |" in texts[document]
    for text in ("| *paper: STN-iCNN* | 0.895 |", f"| {first} | 0.7000 |"):
        assert text in texts[document]
        assert text not in texts[results / "README.md"]


def test_scores_are_shown_by_part_of_data_sets_that_the_paper_lacks_and_by_label_without_its_groups(results):
    for changes, measure in (({"dataset": "lapa"}, "paper"), ({"paper": {}}, "strict")):
        for path in (*results.rglob("scores.json"), *results.rglob("config.json")):
            write_json(path, {**json.loads(path.read_text()), **changes})
        assert re.findall(r"\| F1, (\w+)", report.report(results)[results / "README.md"]) == [measure]


def test_parsers_of_all_labels_stand_together_and_others_do_not():
    means = {"miou": 0.5, "mean_f1_18": 0.6, "mean_f1_inner8": 0.7}
    runs = [report.Run("a", {}, {"val": {"A": means}, "test": {"B": means, "C": {"miou": 0.8}}}, "")]
    rows = report.all_labels(runs).splitlines()[2:]
    assert rows == ["| A | 0.5000 | 0.6000 | 0.7000 | – | – | – |", "| B | – | – | – | 0.5000 | 0.6000 | 0.7000 |"]


def test_the_documents_hold_the_tables_of_the_committed_results():
    texts = report.report(HOME / "results", DOCUMENTS)
    assert texts == {HOME / "results" / "README.md": (HOME / "results" / "README.md").read_text()}  # no page changes
    page = (HOME / "docs" / "experiments.md").read_text()
    for path in (HOME / "results" / "experiments").iterdir():
        assert f"table: experiments/{path.stem} " in page or f"../results/experiments/{path.name}" in page
    assert set(report.EXPERIMENTS) == {path.stem for path in (HOME / "results" / "experiments").glob("*.json")}


def test_every_link_of_the_documents_leads_somewhere():
    broken = []
    for path in LINKING:
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{path.relative_to(HOME)}: {link}")
    assert not broken


def anchors(path: Path) -> set[str]:
    """The headings of a Markdown file, as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_results_that_cannot_be_reported_are_refused_and_nothing_is_written(results):
    log, before = results / "mine-seed0" / "stage1" / "log.jsonl", contents(results)
    log.write_bytes(b'{"a": [1, 2')
    with refuses(log, "line 1"):
        report.main(["--results", str(results)])
    log.write_bytes(before[log.relative_to(results)])
    assert contents(results) == before
    for path in (results / "mine-seed0").rglob("scores.json"):
        write_json(path, {})
    with refuses(results / "mine-seed0", "lacks 'paper'"):
        report.main(["--results", str(results)])
