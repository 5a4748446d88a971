"""Broken files name every fault with its line; sources are files, URLs, subsets and mixtures."""

from __future__ import annotations

import functools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from prompts.dataset import BLOCK, PromptMixture, load_prompts, prompt_at
from prompts.motions import Motion
from prompts.prompt_files import read_prompt_file
from prompts.schema import Prompt


def line(id: str, text: str, motions: list[str] | None = None) -> str:
    return json.dumps({"id": id, "prompt": text, "motions": motions or []})


def write(path: Path, *lines: str | bytes) -> str:
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return str(path)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"id": "x", ', "line: Invalid JSON"),
        (line("x", "Push in by 30 degrees."), "line: 'push in' is asked for by 30 degrees"),
        (line("x", "A box.", ["fly up"]), "motions.0: Input should be 'push in'"),
        (line("x", ""), "prompt: String should have at least 1 character"),
        (line("x", "  "), "prompt: is blank"),
        (line("x", "word " * 10_000), "prompt: has 10000 words; allowed: at most 400"),
        (line("x", "A \x07 box."), r"prompt: holds the control character '\x07'"),
        (line("x", "A\nbox."), r"prompt: holds the control character '\n'"),
        (b'{"id": "x", "prompt": "caf\xe9", "motions": []}', "is not UTF-8 text"),
        (line("a", "Another box."), "id 'a' is that of line 1"),
        (line("x", "A box.", ["push in"]), "its text names []: they must be equal"),
    ],
)
def test_each_fault_is_named_with_its_line(tmp_path: Path, bad: str | bytes, message: str) -> None:
    file = write(tmp_path / "set.jsonl", line("a", "A box."), "", bad, line("z", "A ball."))
    found = read_prompt_file(file)
    assert [prompt.id for prompt in found.prompts] == ["a", "z"]
    assert [problem.line for problem in found.problems] == [3]
    assert message in found.problems[0].message
    assert str(found.problems[0]).startswith(f"{file}, line 3: ")
    with pytest.raises(ValueError, match=r"set.jsonl, line 3: "):
        load_prompts(file)


def test_loading_counts_the_faults_it_does_not_print(tmp_path: Path) -> None:
    file = write(tmp_path / "set.jsonl", "{", "{", "{")
    with pytest.raises(ValueError, match=r"line 1: .* \(and 2 more: `worldr1 prompts check"):
        load_prompts(file)


def test_a_text_file_is_one_prompt_per_line(tmp_path: Path) -> None:
    file = write(
        tmp_path / "mine.txt",
        b"\xef\xbb\xbfCamera push in. A box.\r",
        "",
        "A ball. Pan left, then push in.",
    )
    first, second = load_prompts(file)
    assert (first.id, first.text, first.motions) == (
        "mine-00001",
        "Camera push in. A box.",
        (Motion.PUSH_IN,),
    )
    assert (second.id, second.taxonomy) == ("mine-00003", "composite")
    assert first.taxonomy == "intra-scene"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL under which a server on loopback shows it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_files_are_read_by_url(site: tuple[Path, str]) -> None:
    folder, url = site
    write(folder / "set.jsonl", line("a", "A box."))
    write(folder / "set.txt", "A ball.")
    assert [p.id for p in load_prompts(f"{url}/set.jsonl")] == ["a"]
    assert [p.text for p in load_prompts(f"{url}/set.txt")] == ["A ball."]
    with pytest.raises(ValueError, match=r"missing.jsonl: cannot be read"):
        load_prompts(f"{url}/missing.jsonl")


def test_other_endings_and_subsets_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    assert "allowed: .jsonl, .txt" in read_prompt_file(str(tmp_path / "x.csv")).problems[0].message
    for wrong in ("toy_train[:0]", "toy_train[:65]"):
        with pytest.raises(ValueError, match="is not one of its subsets"):
            load_prompts(wrong)
    with pytest.raises(ValueError, match="every weight must be at least"):
        load_prompts("0*toy_train + 1*toy_test")
    with pytest.raises(ValueError, match=r"weight '1\.2\.3' is no number"):
        load_prompts("1.2.3*toy_train + toy_test")


def test_an_id_may_not_name_two_prompts_of_a_mixture(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", line("a", "A box."))
    two = write(tmp_path / "two.jsonl", line("a", "A ball."))
    with pytest.raises(ValueError, match="id 'a' names two different prompts"):
        load_prompts(f"{one} + {two}")


def test_a_mixture_meets_its_weights_and_walks_each_part_as_if_alone() -> None:
    mixture = load_prompts("0.7*toy_train + 0.2*toy_dynamic + 0.1*toy_test[:5]")
    assert isinstance(mixture, PromptMixture)
    assert mixture.counts == (700, 200, 100)
    assert len(mixture) == len(list(mixture)) == 64 + 16 + 5
    walk = [prompt_at(3, position, mixture) for position in range(2 * BLOCK)]
    for start in (0, BLOCK):
        names = Counter(p.id.rpartition("-")[0] for p in walk[start : start + BLOCK])
        assert names == {"toy-train": 700, "toy-dynamic": 200, "toy-test": 100}
    alone = load_prompts("toy_train")
    from_train = [p for p in walk if p.id.startswith("toy-train")]
    assert from_train == [prompt_at(3, position, alone) for position in range(1400)]


def test_the_toy_walk_is_the_one_that_runs_have_always_had() -> None:
    """Runs that were started earlier must go on through the very same prompts."""
    prompts = load_prompts("toy_train")
    walk = [prompt_at(0, position, prompts).id for position in (0, 1, 2, 63, 64, 200)]
    assert walk == [f"toy-train-{n:03d}" for n in (16, 36, 27, 31, 0, 50)]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("my prompts (v2)", "my_prompts__v2_-00001"),
        ("café", "caf_-00001"),
        ("-x", "x-00001"),
        ("n" * 120, "n" * 50 + "-00001"),
    ],
)
def test_any_name_of_a_text_file_gives_ids_that_name_files(
    tmp_path: Path, name: str, first: str
) -> None:
    (tmp_path / f"{name}.txt").write_text("A ball.\nA box.\n")
    found = load_prompts(str(tmp_path / f"{name}.txt"))
    assert [prompt.id for prompt in found] == [first, first[:-1] + "2"]


@pytest.mark.parametrize("id", ["../x", "a/b", "a b", "", ".hidden", "x" * 101, "a#b"])
def test_an_id_that_names_no_file_is_refused(id: str) -> None:
    with pytest.raises(ValidationError, match="names files; allowed: letters"):
        Prompt.from_text(id, "A ball.")


def test_an_amount_that_cannot_be_is_a_problem_of_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.txt", "Push in. A box.", "Push in by 30 degrees.", "Pan left.")
    found = read_prompt_file(path)
    assert found.lines == (1, 3)
    (problem,) = found.problems
    assert str(problem).startswith(f"{path}, line 2: prompt: 'push in' is asked for by 30 degrees")
