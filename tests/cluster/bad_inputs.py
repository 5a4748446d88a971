"""Inputs that are wrong by construction: configurations, prompt files, runs, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from cluster.checkpoint import CheckpointStore, RunState
from cluster.config import RunConfig, fingerprint, load

HUGE = ("10" * 40, "-" + "10" * 40, "1e308", "-1e308", "1" * 4400)
NOT_FINITE = ("nan", "inf", "-inf")
STRUCTURES = ("[1, 2]", '["a"]', "{a = 1}", "[]", "{}", "[" * 2000)
LINE = {"id": "p-1", "prompt": "Camera push in. A red box.", "motions": ["push_in"]}


def leaves() -> dict[str, Mapping[str, Any]]:
    """JSON schema of every key that is no section, by dotted name."""
    schema = RunConfig.model_json_schema()

    def walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, field in node["properties"].items():
            if "$ref" in field:
                yield from walk(
                    schema["$defs"][field["$ref"].rpartition("/")[2]], f"{prefix}{name}."
                )
            else:
                yield f"{prefix}{name}", field

    return dict(walk(schema, ""))


def numeric_bounds(field: Mapping[str, Any]) -> tuple[float, float]:
    """Least and greatest value that are surely out of range; KeyError where there is no bound."""
    low = field["minimum"] - 1 if "minimum" in field else field["exclusiveMinimum"]
    high = field["maximum"] + 1 if "maximum" in field else field["exclusiveMaximum"]
    return low, high


def bad_values(field: Mapping[str, Any]) -> st.SearchStrategy[str]:
    """TOML texts that a field must refuse: wrong types, out of range, not finite, huge."""
    choices = field.get("anyOf", [field])
    kinds = {choice.get("type") for choice in choices}
    bad: list[st.SearchStrategy[str]] = []
    if kinds & {"integer", "number"}:
        number = next(choice for choice in choices if choice["type"] in ("integer", "number"))
        low, high = numeric_bounds(number)
        whole = number["type"] == "integer"
        bad += [
            st.sampled_from(
                (*HUGE, *NOT_FINITE, *STRUCTURES, "true", "false", '"7"', "1979-05-27")
            ),
            st.integers(max_value=int(low) - (0 if whole and low == int(low) else 1)).map(str),
            st.integers(min_value=int(high) + (0 if whole else 1)).map(str),
            st.text(alphabet="abcdxyz _-", min_size=1).map(json.dumps),
        ]
        if whole:
            bad.append(st.floats(0.01, 0.99).map(lambda x: f"{1 + x:.3f}"))
    elif kinds == {"boolean"} or kinds == {"boolean", "null"}:
        bad.append(st.sampled_from(("2", "1.5", '"yes"', "maybe", "nan", *STRUCTURES)))
    elif "array" in kinds:
        bad.append(st.sampled_from(("1", "true", "nan", '"a"', "[]", "[1, true]", "[nan, 0.9]")))
        bad.append(st.sampled_from(("[[1]]", "[{a = 1}]", "{a = 1}", "[2.0, 3.0]", "[-1, 0.5]")))
    else:
        bad.append(st.sampled_from(("1", "1.5", "true", "nan", "[1]", "{a = 1}", "-7")))
        if any("enum" in choice or "const" in choice for choice in choices):
            bad.append(st.text(alphabet="qwvz", min_size=1, max_size=20).map(json.dumps))
    if "null" not in kinds:
        bad.append(st.just("none") if kinds & {"integer", "number", "boolean"} else st.just("[0]"))
    return st.one_of(bad)


def bad_overrides() -> st.SearchStrategy[str]:
    """key=value of every key with a wrong value, of unknown keys, and of sections as values."""
    known = leaves()
    wrong = st.sampled_from(sorted(known)).flatmap(
        lambda key: bad_values(known[key]).map(lambda value: f"{key}={value}")
    )
    unknown = st.tuples(
        st.sampled_from(sorted(known)), st.text(alphabet="qzx", min_size=1, max_size=6)
    ).map(lambda pair: f"{pair[0]}{pair[1]}=1")
    deeper = st.sampled_from(sorted(known)).map(lambda key: f"{key}.inner=1")
    sections = sorted({key.rpartition(".")[0] for key in known} - {""})
    section = st.tuples(
        st.sampled_from(sections), st.sampled_from(("1", "none", '"a"', "[]", "nan", "true"))
    ).map(lambda pair: f"{pair[0]}={pair[1]}")
    return st.one_of(wrong, wrong, wrong, unknown, deeper, section)


def bad_toml() -> st.SearchStrategy[bytes]:
    """Contents of a file of overrides that cannot be meant."""
    return st.one_of(
        st.binary(min_size=1, max_size=60).map(lambda data: b"\xff" + data),
        st.text(min_size=1, max_size=40).map(lambda text: f"= {text}".encode("utf-8", "ignore")),
        st.just(b"[rollout\nframes = 9"),
        st.just(b"a = " + b"[" * 5000),
        st.just(b"steps = 1\nsteps = 2"),
        # --run has the last word over a file's `run`.
        bad_overrides()
        .filter(lambda text: text.endswith("=1") and text != "run=1")
        .map(str.encode),
    )


def bad_prompt_files() -> st.SearchStrategy[tuple[str, bytes]]:
    """(file ending, content) of prompt files of which nothing may be trained on."""
    changes: st.SearchStrategy[dict[str, Any]] = st.one_of(
        st.sampled_from(sorted(LINE)).map(lambda name: {name: None}),
        st.sampled_from(sorted(LINE)).map(lambda name: {name: 7}),
        st.just({"motions": ["pull_out"]}),
        st.just({"motions": ["fly"]}),
        st.just({"id": ""}),
        st.just({"id": "a\u0007b"}),
        st.just({"prompt": " "}),
        st.just({"prompt": "Camera push in. " + "word " * 401}),
        st.just({"seed": -1}),
        st.just({"colour": "red"}),
        st.just({"c2w": [[[1.0] * 4] * 4]}),
        st.just({"c2w": [[1.0, 2.0]]}),
        st.just({"c2w": "path"}),
        st.just({"c2w": [[[float("nan")] * 4] * 4] * 9}),
        st.just({"c2w": _identities(7)}),
    )
    spoilt = changes.map(lambda change: json.dumps({**LINE, **change}).encode())
    broken = st.one_of(
        st.binary(min_size=1, max_size=40).map(lambda data: b"\xfe" + data.replace(b"\n", b"")),
        st.just(b"{"),
        st.just(b"[1, 2]"),
        st.just(b"7"),
        st.just(b'{"id": ' + b"[" * 3000),
        st.just(json.dumps(LINE).encode() + b"\n" + json.dumps(LINE).encode()),
        st.just(b""),
        st.just(b"\n \n"),
    )
    jsonl = st.tuples(st.just(".jsonl"), st.one_of(spoilt, spoilt, broken))
    other = st.tuples(st.sampled_from((".csv", ".none", ".json", ".parquet")), spoilt)
    return st.one_of(jsonl, jsonl, jsonl, other)


def bad_prompt_names() -> st.SearchStrategy[str]:
    """Texts that name no prompt set."""
    return st.one_of(
        st.text(alphabet="qwzx_-", min_size=1, max_size=12),
        st.sampled_from(
            ("/nowhere/a.jsonl", "nosuch://a/b.jsonl", "toy_train[:0]", "toy_train[:-1]", "/")
        ),
        st.sampled_from(("nan*toy_train", "0*toy_train", "-1*toy_train", "toy_train[:", " + ")),
        st.sampled_from(("memory://nothing.jsonl", "toy_train + nothing", "\u0000", "a" * 5000)),
    )


def bad_runs(folder: Path) -> st.SearchStrategy[str]:
    """Run URLs that cannot be written to."""
    file = folder / "a_file"
    file.write_text("not a folder")
    return st.one_of(
        st.text(alphabet="qwzxk", min_size=3, max_size=9).map(lambda name: f"{name}://bucket/run"),
        st.sampled_from(("/proc/none/run", str(file), f"{file}/run", "/dev/null/run", "")),
        st.sampled_from(
            (f"{folder}/" + "n" * 300, f"{folder}/a\u0000b", "https://127.0.0.1:9/run")
        ),
    )


def _identities(frames: int) -> list[list[list[float]]]:
    return [[[float(i == j) for j in range(4)] for i in range(4)] for _ in range(frames)]


FINGERPRINTED = (
    "seed=7",
    "threads=2",
    "policy.guidance_scale=3.5",
    "policy.lora.rank=4",
    "rollout.frames=13",
    "rollout.sampling_steps=11",
    "camera.strength=0.5",
    "rewards.weights.gen=2.0",
    "learner.clip_range=0.5",
    "learner.advantage=batch",
    "schedule.main_steps=9",
    "prompts.train=toy_test",
)


def saved_run(folder: Path, steps: tuple[int, ...] = (2, 4)) -> CheckpointStore:
    """A run's folder with whole checkpoints of the toy preset in the store's own format."""
    config = load("toy", [f"run={folder}"])
    store = CheckpointStore(str(folder))
    for step in steps:
        store.begin(step)
        learner = folder / f"checkpoints/step_{step:06d}/learner"
        (learner / "__0_0.distcp").write_bytes(b"shard" * 50)
        (learner / ".metadata").write_bytes(b"meta" * 20)
        store.commit(step, RunState(step=step), fingerprint(config))
    return store


Damage = Callable[[Path], None]


def damages() -> st.SearchStrategy[tuple[str, Damage]]:
    """(what, how) to spoil one checkpoint's folder beyond use, its manifest left in place."""

    def on(name: str, change: Callable[[bytes], bytes | None]) -> Damage:
        def spoil(step: Path) -> None:
            file = step / name
            data = change(file.read_bytes())
            if data is None:
                file.unlink()
            else:
                file.write_bytes(data)

        return spoil

    names = st.sampled_from(("state.json", "learner/__0_0.distcp", "learner/.metadata"))
    flips = st.integers(0, 79).map(
        lambda place: lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    )
    cuts = st.integers(0, 79).map(lambda size: lambda data: data[:size])
    kinds = st.one_of(
        st.tuples(st.just("deleted"), st.just(lambda data: None)),
        st.tuples(st.just("cut"), cuts),
        st.tuples(st.just("flipped"), flips),
    )
    files = st.tuples(names, kinds).map(lambda c: (f"{c[0]} {c[1][0]}", on(c[0], c[1][1])))
    manifest = st.tuples(st.just("manifest cut"), cuts.map(lambda cut: on("manifest.json", cut)))
    return st.one_of(files, files, manifest)
