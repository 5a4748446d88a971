"""Proof from the ledger that every group's gradient entered the final weights exactly once, or
that the group was dropped for a reason.

The witness is the learner: its checkpoint carries an account of what it applied, a hash chain over
(step, samples) that it extends at every step and that is saved and restored with its weights. The
ledger is the coordinator's. Where the chain recomputed from the ledger's rows equals the learner's,
both tell the same story about the same weights.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.checkpoint import CheckpointStore, RunState
from cluster.config import ConfigError, RunConfig, from_tree
from cluster.ledger import LedgerDamage, SampleRow, read_chain
from cluster.storage import RunFolder
from learner.account import EMPTY_ACCOUNT, extend_account


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was counted and what is wrong."""

    steps: int
    issued: int
    """Groups issued up to the checkpoint."""
    trained: int
    """Groups whose gradient entered the weights once."""
    skipped: int
    """Groups of batches whose update was not applied."""
    dropped: dict[str, int]
    """Reason -> groups."""
    in_flight: int
    """Groups issued and undecided; a resumed run issues them again."""
    unscored: int
    """Samples left out of a group that trained."""
    lost: tuple[int, ...] = ()
    """Serial numbers of groups without a fate."""
    double: tuple[int, ...] = ()
    """Serial numbers of groups with more than one."""
    findings: tuple[str, ...] = field(default=())
    """Everything that is wrong, in sentences; empty when the run is in order."""

    def lines(self) -> list[str]:
        """What `worldr1 audit` prints."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        head = (
            f"audit  {self.steps} steps: {self.issued} groups issued = {self.trained} trained once "
            f"+ {self.skipped} in skipped updates + {sum(self.dropped.values())} dropped"
            + (f" ({reasons})" if reasons else "")
            + f" + {self.in_flight} in flight"
        )
        verdict = (
            f"audit  {len(self.lost)} lost, {len(self.double)} double, {self.unscored} samples "
            "unscored; the learner's account "
            + ("agrees" if not self.findings else "or the ledger is NOT in order")
        )
        return [head, verdict, *(f"audit  FINDING {finding}" for finding in self.findings)]


def check_ledger(rows: Sequence[SampleRow], state: RunState, config: RunConfig) -> AuditReport:
    """Check all rows that led to a checkpoint's `state` (pure)."""
    groups: dict[int, list[SampleRow]] = defaultdict(list)
    for row in rows:
        groups[row.group].append(row)
    flying = {entry.group for entry in state.in_flight}
    issued = range(state.next_group)
    fates = {serial: _fates(own) for serial, own in groups.items()}
    lost = tuple(s for s in issued if s not in groups and s not in flying)
    double = tuple(s for s in sorted(fates) if len(fates[s]) + (s in flying) != 1)
    findings = [f"group {s} was issued and has no fate" for s in lost]
    for serial in double:
        shown = [f"{kind} at step {step}" for kind, step in sorted(fates[serial])]
        shown += ["in flight"] * (serial in flying)
        findings.append(f"group {serial} has {len(shown)} fates: {', '.join(shown)}")
    findings += [f"group {s} was never issued" for s in sorted(set(groups) - set(issued))]
    findings += _incomplete(groups, config.rollout.group_size)
    findings += _steps(rows, state, config)
    findings += _account(rows, state)
    single = [next(iter(fates[s])) for s in fates if len(fates[s]) == 1]
    kinds = Counter(kind for kind, _ in single)
    return AuditReport(
        steps=state.step,
        issued=state.next_group,
        trained=kinds.pop("trained", 0),
        skipped=kinds.pop("skipped", 0),
        dropped=dict(Counter(_reason(groups[s]) for s in groups if _is_dropped(groups[s]))),
        in_flight=len(flying),
        unscored=sum(row.status == "unscored" for row in rows),
        lost=lost,
        double=double,
        findings=tuple(findings),
    )


def audit_run(run: str) -> AuditReport:
    """Audit the newest valid checkpoint of a run and the ledger that leads to it.

    ConfigError where there is no run; damage is a finding.
    """
    folder = RunFolder(run)
    if not folder.exists("config.json"):
        raise ConfigError(f"run = {run!r} holds no config.json; it is not a run's directory")
    config = from_tree(json.loads(folder.read_text("config.json")))
    found = CheckpointStore(run).newest_valid()
    if found.checkpoint is None:
        raise ConfigError(f"run = {run!r} has no valid checkpoint to audit")
    state = found.checkpoint.state
    try:
        rows, _ = read_chain(folder, state.ledger)
    except LedgerDamage as damage:
        return AuditReport(state.step, state.next_group, 0, 0, {}, 0, 0, findings=(str(damage),))
    return check_ledger(rows, state, config)


def _is_dropped(rows: Sequence[SampleRow]) -> bool:
    return all(row.status == "dropped" for row in rows)


def _reason(rows: Sequence[SampleRow]) -> str:
    """What a group was dropped for, without the particulars."""
    return rows[0].reason.partition(":")[0]


def _fates(rows: Sequence[SampleRow]) -> set[tuple[str, int]]:
    """The distinct (kind, step) that a group's samples tell; an unscored sample shares its group's
    fate. A sample that occurs twice counts its group twice."""
    kinds: set[tuple[str, int]] = {
        (row.status, row.step) for row in rows if row.status != "unscored"
    }
    repeated = Counter(row.member for row in rows)
    if any(count > 1 for count in repeated.values()) and len(kinds) == 1:
        kinds.add(("repeated", next(iter(kinds))[1]))
    return kinds or {("dropped", rows[0].step)}


def _incomplete(groups: dict[int, list[SampleRow]], group_size: int) -> list[str]:
    found = []
    for serial, rows in sorted(groups.items()):
        members = {row.member for row in rows}
        if members != set(range(group_size)):
            missing = sorted(set(range(group_size)) - members)
            found.append(f"samples {missing} of group {serial} have no row")
    return found


def _steps(rows: Sequence[SampleRow], state: RunState, config: RunConfig) -> list[str]:
    """Every step consumed one batch of groups that were young enough."""
    consumed: dict[int, set[int]] = defaultdict(set)
    found = []
    for row in rows:
        if row.status not in ("trained", "skipped"):
            continue
        consumed[row.step].add(row.group)
        age = None
        if row.version_step is not None:
            age = row.step - row.version_step
        if age is None or not 0 <= age <= config.max_staleness:
            found.append(
                f"step {row.step} consumed group {row.group} of age {age}; allowed are 0 to "
                f"{config.max_staleness}"
            )
    wanted = config.rollout.groups_per_step
    for step in range(state.step):
        if len(consumed[step]) != wanted:
            found.append(f"step {step} consumed {len(consumed[step])} groups, not {wanted}")
    found += [f"step {s} lies beyond the checkpoint" for s in sorted(consumed) if s >= state.step]
    return found


def _account(rows: Sequence[SampleRow], state: RunState) -> list[str]:
    """The chain recomputed from the rows against the one in the learner's checkpoint."""
    applied: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in rows:
        if row.status == "trained":
            applied[row.step].append((row.group, row.member))
    account = EMPTY_ACCOUNT
    for step in range(state.step):
        account = extend_account(account, step, sorted(applied[step]))
    if account == state.account:
        return []
    return [
        f"the learner's account of what it applied is {state.account[:12]}; the ledger's rows "
        f"make {account[:12]}"
    ]
