import os
import subprocess
import sys
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import polygamma

import samsvae_core
from samsvae_core.genesets import prerank as module
from samsvae_core.genesets.gsea import MULTILEVEL, _counted, _log2_error
from samsvae_core.genesets.prerank import CancelledError, Ranking, prerank


def ranking(seed: int, n_genes: int = 200, n_sets: int = 4) -> Ranking:
    rng = np.random.default_rng(seed)
    scores = np.sort(rng.standard_normal(n_genes))[::-1]
    sets = [sorted(rng.choice(n_genes, 12, replace=False).tolist()) for _ in range(n_sets)]
    return Ranking(scores.tolist(), sets)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "enrichment"


def test_scores_are_the_largest_deviation_of_the_running_sum():
    one = ranking(0)
    for genes, (es, nes, p_value, edge, error) in zip(one.sets, prerank([one])[0], strict=True):
        weight = np.abs(one.scores)
        hit = np.isin(np.arange(len(weight)), genes)
        walk = np.cumsum(np.where(hit, weight / weight[hit].sum(), -1 / (~hit).sum()))
        peak = np.argmax(np.abs(walk))
        assert es == pytest.approx(walk[peak], abs=1e-6)
        assert np.sign(nes) == np.sign(es)
        assert 0 < p_value <= 1
        assert 0 <= error < 1
        side = range(peak + 1) if es > 0 else range(peak, len(walk))
        assert set(edge) == set(genes) & set(side)


def test_the_answer_depends_neither_on_the_processes_nor_on_the_others(monkeypatch, tmp_path):
    several = [ranking(seed) for seed in range(3)]
    together = prerank(several, seed=5, n_processes=2)
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / "another"))
    assert together == [prerank([one], seed=5, n_processes=1)[0] for one in several]


def test_many_sets_are_asked_in_parts_and_come_back_in_order(monkeypatch):
    one = ranking(1, n_sets=7)
    monkeypatch.setattr(module, "SETS_AT_ONCE", 3)
    assert len(list(one.jobs(0))) == 3
    answers = prerank([one], n_processes=2)[0]
    edges = [set(edge) for *_, edge, _ in answers]
    assert all(edge <= set(genes) for genes, edge in zip(one.sets, edges, strict=True))
    assert all(edges)


def aborts_at_the_second() -> None:
    import os
    import sys
    from pathlib import Path

    for file in sorted(Path(sys.argv[2]).glob("*.job")):
        held = file.with_suffix(f".held{sys.argv[3]}")
        file.rename(held)
        if file.name.startswith("00002"):
            os.abort()
        part = file.with_suffix(".part")
        part.write_text("[[0.5, 1.5, 0.01, [0, 1], 0.3]]")
        part.rename(file.with_suffix(".answer"))
        held.unlink()


def hangs() -> None:
    import faulthandler
    import sys
    import time
    from pathlib import Path

    for file in sorted(Path(sys.argv[2]).glob("*.job")):
        file.rename(file.with_suffix(f".held{sys.argv[3]}"))
        faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)
        time.sleep(30)


def raises() -> None:
    raise BaseException("a panic")


def test_a_worker_that_dies_costs_its_ranking_alone(monkeypatch):
    monkeypatch.setattr(module, "_work", aborts_at_the_second)
    answers = prerank([ranking(0), ranking(1), ranking(2)], n_processes=1)
    done = [[0.5, 1.5, 0.01, [0, 1], 0.3]]
    assert answers == [done, "failed: exit status -6", done]


def test_a_worker_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(module, "_work", hangs)
    monkeypatch.setattr(module, "SECONDS", 0.1)
    assert prerank([ranking(0), ranking(1)]) == ["failed: more than 0.1 s"] * 2


def dies_at_its_first_start() -> None:
    import os
    import sys
    from pathlib import Path

    once = Path(sys.argv[2], "once")
    if not once.exists():
        once.write_text("")
        os.abort()
    for file in sorted(Path(sys.argv[2]).glob("*.job")):
        held = file.rename(file.with_suffix(f".held{sys.argv[3]}"))
        part = file.with_suffix(".part")
        part.write_text("[[0.5, 1.5, 0.01, [0, 1], 0.3]]")
        part.rename(file.with_suffix(".answer"))
        held.unlink()


def test_a_worker_that_dies_as_it_starts_is_replaced(monkeypatch):
    monkeypatch.setattr(module, "_work", dies_at_its_first_start)
    done = [[0.5, 1.5, 0.01, [0, 1], 0.3]]
    assert prerank([ranking(0), ranking(1)], n_processes=1) == [done, done]


def test_a_failure_says_why_and_is_not_kept(monkeypatch, cache):
    monkeypatch.setattr(module, "_work", raises)
    assert prerank([ranking(0), ranking(1)]) == ["failed: BaseException: a panic"] * 2
    assert not cache.exists()


def sleeps() -> None:
    import time

    time.sleep(30)


def test_a_cancelled_run_ends_at_once_and_takes_its_workers_with_it(monkeypatch):
    started = []

    def popen(*arguments, hire=subprocess.Popen, **options):
        started.append(hire(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(module, "_work", sleeps)
    monkeypatch.setattr(module.subprocess, "Popen", popen)
    began = time.monotonic()
    with pytest.raises(CancelledError):
        prerank([ranking(0), ranking(1)], n_processes=2, cancelled=lambda: len(started) > 1)
    assert time.monotonic() - began < 10
    assert [worker.returncode for worker in started] == [-9, -9]


def test_no_more_workers_are_hired_than_there_are_jobs(monkeypatch):
    hired = []
    monkeypatch.setattr(
        module,
        "_hired",
        lambda folder, number, hire=module._hired: hired.append(number) or hire(folder, number),
    )
    prerank([ranking(0)], n_processes=8)
    assert hired == [0]


def test_the_worker_runs_where_there_is_one_core(monkeypatch):
    program = "import os; os.cpu_count = lambda: 1\n"
    hire = subprocess.Popen

    def on_one_core(command, **options):
        assert command[2] == "-c"
        return hire([*command[:3], program + command[3], *command[4:]], **options)

    monkeypatch.setattr(module.subprocess, "Popen", on_one_core)
    assert len(prerank([ranking(0)])[0]) == 4


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    script = tmp_path / "data.py"  # a name that would also shadow a module of the project
    script.write_text(
        "from samsvae_core.genesets.prerank import Ranking, prerank\n"
        "print('once')\n"
        "ranking = Ranking([float(30 - n) for n in range(60)], [list(range(20))])\n"
        "print(len(prerank([ranking])[0]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(samsvae_core.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout == "once\n1\n", done.stderr


def test_what_was_asked_before_is_not_asked_again(monkeypatch, cache):
    first = prerank([ranking(0)])
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(module, "_work", raises)
    assert prerank([ranking(0), ranking(0)]) == first * 2


def test_every_change_of_content_is_asked_anew(monkeypatch):
    one = ranking(0)
    nudged = Ranking([np.nextafter(one.scores[0], 9), *one.scores[1:]], one.sets)
    fewer = Ranking(one.scores, one.sets[:-1])
    keys = {one.key(0), nudged.key(0), fewer.key(0), one.key(1), one._replace(draws=9).key(0)}
    monkeypatch.setattr(module, "version", lambda _: "another gseapy")
    assert len(keys | {one.key(0)}) == 6


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[list, str, bytes]:
    """Return the answer for a ranking, and the name and content of the file it is kept in."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMSVAE_CACHE", str(folder))
        answer = prerank([ranking(0)])
    file = next((folder / "enrichment").iterdir())
    return answer, file.name, file.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "not text"])
def test_a_damaged_file_is_made_again(cache, kept, damage, caplog):
    first, name, content = kept
    file = cache / name
    cache.mkdir(parents=True)
    file.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "flipped": content.replace(b"1", b"2", 1),
            "emptied": b"",
            "not text": b"\xff\xfe",
        }[damage]
    )
    assert prerank([ranking(0)]) == first
    assert "made again" in caplog.text
    assert file.read_bytes() == content


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / "file"))
    assert len(prerank([ranking(0)])[0]) == 4
    assert "Not kept" in caplog.text


def score_of(weight: np.ndarray, genes: tuple[int, ...]) -> float:
    hit = np.isin(np.arange(len(weight)), genes)
    walk = np.cumsum(np.where(hit, weight / weight[hit].sum(), -1 / (~hit).sum()))
    return float(walk[np.argmax(np.abs(walk))])


def test_item_09_draws_count_what_all_sets_of_a_size_would():
    scores = ranking(3, n_genes=18).scores
    weight = np.abs(scores)
    for sets in ([[0, 1, 4], [2, 9, 16]], [[0, 1, 2, 3, 4, 6, 7, 9, 12]]):  # few, and most genes
        every = [score_of(weight, c) for c in combinations(range(18), len(sets[0]))]
        every = np.array(every)
        counted = prerank([Ranking(scores, sets, 40_000)])[0]
        for genes, (of_sign, extreme, mean) in zip(sets, counted, strict=True):
            es = score_of(weight, tuple(genes))
            same = every[(every >= 0) == (es >= 0)]
            exact = (np.abs(same) >= abs(es) - 1e-12).mean()
            error = np.sqrt(exact * (1 - exact) / of_sign)
            assert extreme / of_sign == pytest.approx(exact, abs=4 * error)
            assert of_sign / 40_000 == pytest.approx(len(same) / len(every), abs=0.01)
            assert mean == pytest.approx(same.mean(), rel=0.01)


def test_item_09_the_error_of_draws_is_their_spread_over_seeds_around_the_exact_p():
    scores, sets = ranking(5, n_genes=16).scores, [[0, 1, 5, 8]]
    weight = np.abs(scores)
    every = np.array([score_of(weight, genes) for genes in combinations(range(16), 4)])
    es = score_of(weight, tuple(sets[0]))
    same = every[(every >= 0) == (es >= 0)]
    exact = (np.abs(same) >= abs(es) - 1e-12).mean()
    assert 0.01 < exact < 0.5
    row = {"es": [es], "nes": [1.0], "p_value": [1.0], "log2_error": [np.inf], "draws": [0]}
    runs = [
        _counted(pd.DataFrame(row), np.array([0]), module._drawn(scores, sets, 1000, seed), 1000)
        for seed in range(200)
    ]
    table = pd.concat(runs)
    spread = np.log2(table["p_value"]).std()
    assert spread / np.sqrt((table["log2_error"] ** 2).mean()) == pytest.approx(1, abs=0.15)
    assert np.log2(table["p_value"]).mean() == pytest.approx(np.log2(exact), abs=0.1)  # never 0


def test_item_09_the_error_of_gseapy_is_that_of_the_draws_of_its_sign():
    extreme, of_sign = np.array([3.0, 80.0, 470.0]), np.array([480.0, 520.0, 500.0])
    of_all = np.sqrt(polygamma(1, extreme + 1) - polygamma(1, 1001)) / np.log(2)
    p_value = (extreme + 1) / (of_sign + 1)
    expected = np.sqrt(polygamma(1, extreme + 1) - polygamma(1, of_sign + 1)) / np.log(2)
    np.testing.assert_allclose(_log2_error(p_value, of_all), expected)
    deep = _log2_error(np.array([1e-9, 1e-50, 1.0]), np.array([0.7, np.nan, np.nan]))
    np.testing.assert_allclose(deep, [0.7 * MULTILEVEL, 2, 0])
