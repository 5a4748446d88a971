"""A real Prometheus on loopback that scrapes what Ray says is there, for one test."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.dashboard import BOARD, promql

SCRAPE_S = 1


@contextmanager
def prometheus(folder: Path, targets: Path) -> Iterator[str]:
    """Its URL; `targets` is the file in which Ray lists its metrics ports."""
    program = shutil.which("prometheus")
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s"},
        "scrape_configs": [
            {
                "job_name": "ray",
                "file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}],
            }
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while not ready(url):
            assert server.poll() is None, (folder / "prometheus.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def query_range(url: str, query: str, start: float, end: float) -> list[dict[str, Any]]:
    """Series of a PromQL query over an interval, once a second."""
    arguments = urllib.parse.urlencode({"query": query, "start": start, "end": end, "step": "1s"})
    with urllib.request.urlopen(f"{url}/api/v1/query_range?{arguments}", timeout=10) as answer:
        found = json.load(answer)
    assert found["status"] == "success", found
    return list(found["data"]["result"])


def help_texts(url: str) -> dict[str, str]:
    """Metric name -> help text, as scraped."""
    with urllib.request.urlopen(f"{url}/api/v1/metadata?limit=20000", timeout=10) as answer:
        return {name: entries[0]["help"] for name, entries in json.load(answer)["data"].items()}


def chosen(query: str, run: str) -> str:
    """A query of the board as Grafana sends it: one run, in whatever session."""
    return query.replace("$session", ".*").replace("$run", run)


def draw_board(url: str, run: str, start: float, end: float, file: Path) -> None:
    """A picture of every panel of the board that has data, from the same queries."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [panel for _, row in BOARD for panel in row]
    answers = {}
    for panel in panels:
        found = []
        for template, legend in panel.queries:
            for series in query_range(url, chosen(promql(template), run), start, end):
                name = legend
                for label, value in series["metric"].items():
                    name = name.replace(f"{{{{{label}}}}}", value)
                found.append((name, [(t - start, float(v)) for t, v in series["values"]]))
        if found:
            answers[panel.title] = found
    figure, axes = plt.subplots(
        -(-len(answers) // 4), 4, figsize=(17, 12), squeeze=False, sharex=True
    )
    for axis in axes.flat[len(answers) :]:
        axis.axis("off")
    for axis, (title, series) in zip(axes.flat, answers.items(), strict=False):
        for name, values in series:
            axis.plot(*zip(*values, strict=True), label=name, linewidth=1.2)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
        if len(series) <= 12:  # the clips of the examiner would hide their lines
            axis.legend(fontsize=6, ncols=2, frameon=False)
    figure.supxlabel("seconds", fontsize=9)
    figure.tight_layout(h_pad=1.5)
    figure.savefig(file, dpi=80)
    plt.close(figure)
