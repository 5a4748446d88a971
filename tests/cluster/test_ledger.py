"""The ledger survives the disk, its chain cannot be bent, the audit finds each kind of fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.audit import check_ledger
from cluster.checkpoint import InFlight, RunState
from cluster.config import RunConfig
from cluster.ledger import Ledger, LedgerDamage, SampleRow, Status, from_parquet, read_chain
from cluster.storage import RunFolder
from learner.account import EMPTY_ACCOUNT, extend_account

Build = Callable[..., RunConfig]


def row(group: int, member: int, status: Status = "trained", step: int = 0) -> SampleRow:
    return SampleRow(
        group=group,
        member=member,
        prompt_id=f"p{group}",
        phase="main",
        seed=3,
        window_start=1,
        status=status,
        reason="" if status == "trained" else "no_gradient",
        step=step,
        version_step=step,
        version_lineage="a",
        version_checksum="c",
        total=1.5,
        advantage=0.25,
        parts={"recon": 0.1 + 0.2, "gen": -1.0},
        scorers={"aesthetic": "frames v2"},
        attempts=2,
        worker="host:1",
        rollout_s=0.5,
        score_s=0.25,
    )


def test_rows_survive_the_disk_and_the_chain_leads_back(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    ledger = Ledger(folder)
    first, second = [row(1, 0), row(0, 1)], [row(2, 0, "dropped", 1)]
    ledger.add(first)
    pending = ledger.pending()
    ledger.add(second)
    ledger.decide('{"grow": 1}')
    ledger.flushed(ledger.write(1, "a", pending), pending)
    assert ledger.pending() == (tuple(second), ('{"grow": 1}',))
    pending = ledger.pending()
    ledger.flushed(ledger.write(2, "a", pending), pending)
    assert ledger.pending() == ((), ())
    rows, decisions = read_chain(folder, ledger.head)
    assert rows == [row(0, 1), row(1, 0), row(2, 0, "dropped", 1)]
    assert decisions == ['{"grow": 1}']
    assert rows[0].parts == {"recon": 0.1 + 0.2, "gen": -1.0}


def test_a_ledger_that_a_crash_left_behind_is_on_no_chain(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    ledger = Ledger(folder)
    ledger.add([row(0, 0)])
    pending = ledger.pending()
    ledger.flushed(ledger.write(1, "a", pending), pending)
    crashed = Ledger(folder, ledger.head)
    crashed.add([row(1, 0)])
    crashed.write(2, "a", crashed.pending())  # and no checkpoint names it
    resumed = Ledger(folder, ledger.head)
    resumed.add([row(1, 0)])
    pending = resumed.pending()
    resumed.flushed(resumed.write(2, "b", pending), pending)
    assert [r.group for r in read_chain(folder, resumed.head)[0]] == [0, 1]
    assert len(list(tmp_path.glob("run/ledger/*.parquet"))) == 3


def test_a_changed_or_missing_file_breaks_the_chain(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "run"))
    ledger = Ledger(folder)
    for step in (1, 2):
        ledger.add([row(step, 0)])
        pending = ledger.pending()
        ledger.flushed(ledger.write(step, "a", pending), pending)
    first = tmp_path / "run/ledger/step_000001.a.parquet"
    content = first.read_bytes()
    assert [r.group for r in from_parquet(content)[0]] == [1]
    first.write_bytes(content[:-9] + b"x" + content[-8:])
    with pytest.raises(LedgerDamage, match=r"step_000001\.a\.parquet does not match its SHA-256"):
        read_chain(folder, ledger.head)
    first.unlink()
    with pytest.raises(LedgerDamage, match=r"step_000001\.a\.parquet is missing"):
        read_chain(folder, ledger.head)


def in_order() -> tuple[list[SampleRow], RunState]:
    """Two steps of two groups of two; group 2 was dropped, group 5 is in flight."""
    rows = [row(g, m, step=s) for g, s in ((0, 0), (1, 0), (3, 1), (4, 1)) for m in (0, 1)]
    rows += [row(2, m, "dropped", 1) for m in (0, 1)]
    account = EMPTY_ACCOUNT
    for step, groups in ((0, (0, 1)), (1, (3, 4))):
        account = extend_account(account, step, [(g, m) for g in groups for m in (0, 1)])
    flying = (InFlight(group=5, phase="main", prompt_id="p5"),)
    return rows, RunState(step=2, next_group=6, in_flight=flying, account=account)


def test_an_orderly_run_has_no_findings(smallest: Build) -> None:
    rows, state = in_order()
    report = check_ledger(rows, state, smallest())
    assert report.findings == ()
    assert (report.issued, report.trained, report.in_flight) == (6, 4, 1)
    assert report.dropped == {"no_gradient": 1}
    assert "6 groups issued = 4 trained once" in report.lines()[0]
    assert "0 lost, 0 double" in report.lines()[1]


def lose_a_group(rows: list[SampleRow]) -> list[SampleRow]:
    return [r for r in rows if r.group != 2]


def train_twice(rows: list[SampleRow]) -> list[SampleRow]:
    return [*rows, *(replace(r, step=1) for r in rows if r.group == 0)]


def repeat_rows(rows: list[SampleRow]) -> list[SampleRow]:
    return [*rows, *(r for r in rows if r.group == 0)]


def train_what_is_in_flight(rows: list[SampleRow]) -> list[SampleRow]:
    return [*rows, row(5, 0, step=1), row(5, 1, step=1)]


def lose_a_sample(rows: list[SampleRow]) -> list[SampleRow]:
    return [r for r in rows if (r.group, r.member) != (3, 1)]


def hide_a_gradient(rows: list[SampleRow]) -> list[SampleRow]:
    return [replace(r, status="skipped") if r.group == 3 else r for r in rows]


def invent_a_group(rows: list[SampleRow]) -> list[SampleRow]:
    return [*rows, row(9, 0, "dropped"), row(9, 1, "dropped")]


def train_stale(rows: list[SampleRow]) -> list[SampleRow]:
    return [replace(r, version_step=0) if r.group == 4 else r for r in rows]


@pytest.mark.parametrize(
    ("fault", "words", "lost", "double"),
    [
        (lose_a_group, "group 2 was issued and has no fate", (2,), ()),
        (train_twice, "group 0 has 2 fates: trained at step 0, trained at step 1", (), (0,)),
        (repeat_rows, "group 0 has 2 fates", (), (0,)),
        (train_what_is_in_flight, "group 5 has 2 fates: trained at step 1, in flight", (), (5,)),
        (lose_a_sample, "samples [1] of group 3 have no row", (), ()),
        (hide_a_gradient, "the learner's account", (), ()),
        (invent_a_group, "group 9 was never issued", (), ()),
        (train_stale, "step 1 consumed group 4 of age 1; allowed are 0 to 0", (), ()),
    ],
)
def test_every_fault_is_found(
    smallest: Build,
    fault: Callable[[list[SampleRow]], list[SampleRow]],
    words: str,
    lost: tuple[int, ...],
    double: tuple[int, ...],
) -> None:
    rows, state = in_order()
    report = check_ledger(fault(rows), state, smallest())
    assert any(words in finding for finding in report.findings), report.findings
    assert (report.lost, report.double) == (lost, double)
