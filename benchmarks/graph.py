"""How the graph bears many SAEs: loading, planning, and the pages of the UI.

    python -m benchmarks.graph [--experiments 10] [--saes 200]

Makes that many experiments of that many SAEs each in a home of its own, trains none of them, and
prints how long it takes to load the code location (for the first time, and again in a new
process), to say what is missing, and until pages of the UI show what they are about, in a headless
browser.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

SAE = Path(sys.executable).parent / "sae"

STUDY = """\
name: {name}
model: {{id: world}}
corpus: {{id: world, tokens: 20_000, context: 128, eval_tokens: 4_000}}
sites: [resid_post.2]
saes: [{{kind: topk, d_sae: 64, k: {ks}, seed: {seeds}}}]
"""

LOAD = """
import time
began = time.perf_counter()
from sae_workflows.definitions import defs
import dagster as dg
definitions = defs()
definitions.resolve_asset_graph()
print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=10)
    parser.add_argument(
        "--saes", type=int, default=200, help="of each experiment; a multiple of 10"
    )
    args = parser.parse_args()
    console = Console()
    table = Table("what", "seconds", title=f"{args.experiments} experiments of {args.saes} SAEs")

    def show(what: str, seconds: float) -> None:
        table.add_row(what, f"{seconds:.2f}")
        console.print(f"{what}: {seconds:.2f} s", highlight=False)

    with TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        names = write(Path(folder), home, args.experiments, args.saes)
        environment = {**os.environ, "SAE_HOME": str(home)}
        show("load, files never seen", loaded(environment))
        show("load, again", loaded(environment))
        show("`sae status` of one", timed(lambda: call(environment, "status", names[0])))
        show(
            "`sae status` of one, per cell",
            timed(lambda: call(environment, "status", names[0], "--cells")),
        )
        with ui(home) as address:
            for what, seconds in pages(address, names[0]):
                show(what, seconds)
    console.print(table)


def write(folder: Path, home: Path, experiments: int, saes: int) -> list[str]:
    """Experiment files that belong to ``home``; their names."""
    from sae_workflows.home import adopt

    names = []
    seeds = list(range(10))
    ks = list(range(1, saes // len(seeds) + 1))
    for number in range(experiments):
        name = f"many-{number:02}"
        file = folder / f"{name}.yaml"
        file.write_text(STUDY.format(name=name, ks=ks, seeds=seeds))
        adopt(home, file, name)
        names.append(name)
    return names


def loaded(environment: dict[str, str]) -> float:
    """Seconds in which a new process has the graph, as it says itself."""
    command = [sys.executable, "-W", "ignore", "-c", LOAD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def call(environment: dict[str, str], *arguments: str) -> None:
    subprocess.run([SAE, *arguments], env=environment, capture_output=True, check=True)


@contextmanager
def ui(home: Path) -> Iterator[str]:
    """The UI of ``home`` while the block lasts; its address."""
    from tests.sae_workflows.served import served

    with served(home, home / "ui.log") as one:
        yield f"http://127.0.0.1:{one.port}"


def pages(address: str, experiment: str) -> Iterator[tuple[str, float]]:
    """Seconds until pages show what they are about."""
    from playwright.sync_api import sync_playwright

    group = experiment.replace("-", "_")
    shown = {
        "catalog of assets": ("/assets", experiment),
        "lineage of one experiment": (f"/asset-groups?asset-selection=group:{group}/*", "metrics"),
        "asset with 200 partitions": (f"/assets/{experiment}/saes?view=overview", "Partitions"),
        "its partitions": (f"/assets/{experiment}/saes?view=partitions", "topk-w64-k1-s0"),
        "automation": ("/automation", f"follow_{group}"),
        "runs": ("/runs", "Runs"),
    }
    with sync_playwright() as playwright:
        # one that is installed, or the one that comes with playwright
        found = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)  # what the browser caches is not ours to measure
        page.wait_for_load_state("networkidle")
        for what, (path, text) in shown.items():
            began = time.perf_counter()
            page.goto(address + path)
            page.get_by_text(text).filter(visible=True).first.wait_for(timeout=120_000)
            yield f"page: {what}", time.perf_counter() - began
        browser.close()


if __name__ == "__main__":
    main()
