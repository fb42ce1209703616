"""`lightvl bench`: load on any OpenAI-compatible server, and what came of it."""

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lightvl.cli.arguments import add, add_server, base_url, count, number_above_zero
from lightvl.cli.load_client import Result, Target, first_model, send_all
from lightvl.cli.load_html import page
from lightvl.cli.load_report import Goals, row_of
from lightvl.cli.loads import PRESETS, Load, make_bodies
from lightvl.errors import StartupError
from lightvl.utils.env import read_environment

DESCRIPTION = """\
Puts load on a server that speaks OpenAI's /v1/chat/completions and measures it: time to first
token (TTFT), time per output token after it (TPOT), gaps between events (ITL), whole requests
(e2e), rates, errors, and with goals the goodput. Questions and pictures are made from a seed.

loads (requests, at once, pictures, words in / tokens out):
  L1  256, 32, 560x560     128 / 32      L5  10, 1, 448x448      32 / 64   one stream's latency
  L2  128, 64, 1024x1024   100 / 100     L6  128, 64, 896x896    100 / 100
  L3  128, 32, 1024x1024   100 / 100     L7  128, 64, 1344x896   100 / 100
      one picture for all                L4  128, 64, none       1024 / 128
"""
EPILOG = """\
examples:
  lightvl bench --load L5                                 one request after the other
  lightvl bench --load L1,L4 --repeat 3 --html report.html --out rows.jsonl
  lightvl bench --load L2 --rate 4                        Poisson arrivals, 4 a second
  lightvl bench --image 640x480 --input 64 --output 32    a load of your own
  lightvl bench --load L1 --goal_ttft_ms 500 --goal_tpot_ms 50
  lightvl bench --url http://127.0.0.1:9000 --plain       a server without ignore_eos

exit code: 0 when every request was answered, 1 when one failed, 2 for a bad argument
"""


@dataclass(frozen=True)
class Run:
    """A finished load: its row, and the results for the plots."""

    row: dict[str, Any]
    repetitions: list[list[Result]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    add_server(parser)
    load = parser.add_argument_group("the load")
    add(load, "load", metavar="L1,…", help=f"presets, with commas between: {', '.join(PRESETS)}")
    add(load, "requests", type=count, help="in one repetition; default: the preset's, or 32")
    add(load, "concurrency", type=count, help="closed loop: requests under way at once")
    add(load, "rate", type=number_above_zero, help="open loop: mean arrivals a second (Poisson)")
    add(load, "image", type=_size, metavar="WxH", help="pictures of this size; else text alone")
    add(load, "images_per_request", type=count, help="pictures in a question")
    add(load, "same_image", action="store_true", help="one picture for all questions")
    add(load, "content", choices=("noise", "smooth"), default="noise", help="of the pictures")
    add(load, "input", type=count, metavar="WORDS", help="words of text in a question")
    add(load, "output", type=count, metavar="TOKENS", help="tokens asked for")
    add(load, "plain", action="store_true", help="send no ignore_eos and no stream_options")
    how = parser.add_argument_group("how it is run")
    add(how, "repeat", type=count, default=1, help="repetitions, each with other questions")
    add(how, "warmup", type=int, default=4, help="requests before the clock starts")
    add(how, "seed", type=int, default=0, help="of questions, pictures and arrivals")
    add(how, "timeout", type=number_above_zero, default=300.0, help="seconds for one request")
    goals = parser.add_argument_group("goodput: requests that keep these")
    for name in ("ttft", "tpot", "e2e"):
        add(goals, f"goal_{name}_ms", type=number_above_zero, help=f"milliseconds of {name}")
    out = parser.add_argument_group("what is written")
    add(out, "out", type=Path, help="file of JSON rows, one a load; they are appended")
    add(out, "html", type=Path, help="a report with plots, one file that needs nothing else")
    add(out, "server", default="", help="the server's name and version, for the rows")
    add(out, "device", default="", help="what it runs on, for the rows")
    add(out, "note", default="", help="whatever a reader of the rows should know")
    add(out, "tile_tokens", type=count, default=256, help="of a picture's tile, for tiles/s")


def run(options: argparse.Namespace) -> int:
    """Runs the loads, prints a table, writes what was asked for."""
    console = Console(stderr=True, highlight=False)
    try:
        loads = chosen_loads(options)
        key = options.api_key or read_environment().api_key
        target = Target(base_url(options.url), key, options.timeout)
        options.model = options.model or asyncio.run(first_model(target))
    except (StartupError, OSError) as error:
        console.print(str(error), style="red", markup=False)
        return 2 if isinstance(error, StartupError) else 1
    started = time.strftime("%Y-%m-%dT%H:%M:%S")
    runs = []
    for name, load in loads.items():
        done = _run_load(name, load, target, options, console)
        done.row.update(_circumstances(options, started))
        runs.append(done)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            with options.out.open("a") as file:
                file.write(json.dumps(done.row) + "\n")
        if options.html:  # after every load: a long run that is ended leaves what it has
            options.html.write_text(page([(r.row, r.repetitions) for r in runs]))
    _show([done.row for done in runs])
    return 1 if any(done.row["errors"] for done in runs) else 0


def chosen_loads(options: argparse.Namespace) -> dict[str, Load]:
    """Returns the loads by name: presets with what was asked otherwise, or one of the user's own.

    Raises:
        StartupError: A name is no preset's.
    """
    names = [name for name in (options.load or "").split(",") if name]
    if unknown := [name for name in names if name not in PRESETS]:
        raise StartupError(f"--load {unknown[0]}: expected one of {', '.join(PRESETS)}")
    own = Load(requests=32, concurrency=8, image=None, input_words=128, output_tokens=32)
    changes = {
        "requests": options.requests,
        "concurrency": options.concurrency,
        "rate": options.rate,
        "image": options.image,
        "images_per_request": options.images_per_request,
        "same_image": options.same_image or None,
        "input_words": options.input,
        "output_tokens": options.output,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    chosen = {name: PRESETS[name] for name in names} or {"own": own}
    return {name: replace(load, **changes) for name, load in chosen.items()}


def _run_load(
    name: str, load: Load, target: Target, options: argparse.Namespace, console: Console
) -> Run:
    goals = Goals(options.goal_ttft_ms, options.goal_tpot_ms, options.goal_e2e_ms)

    def bodies(seed: int, number: int, done: Callable[[], None]) -> list[bytes]:
        return make_bodies(
            load,
            model=options.model,
            seed=seed,
            count=number,
            image_seed=options.seed,
            content=options.content,
            plain=options.plain,
            done=done,
        )

    repetitions = []
    for index in range(options.repeat):
        title = f"{name} {index + 1}/{options.repeat}" if options.repeat > 1 else name
        seed = options.seed + 1 + index
        warmup = options.warmup if index == 0 else 0
        with _progress(console, f"{title}: preparing", load.requests + warmup) as step:
            asked = bodies(seed, load.requests, step)
            warm = bodies(options.seed + 7919, warmup, step)
        with _progress(console, f"{title}: measuring", load.requests + warmup) as step:

            async def both(
                warm: list[bytes] = warm,
                asked: list[bytes] = asked,
                seed: int = seed,
                step: Callable[[], None] = step,
            ) -> list[Result]:
                def done(_: Result) -> None:
                    step()

                await send_all(target, warm, concurrency=load.concurrency, done=done)
                return await send_all(
                    target,
                    asked,
                    concurrency=load.concurrency,
                    rate=load.rate,
                    seed=seed,
                    done=done,
                )

            repetitions.append(asyncio.run(both()))
    return Run(row_of(name, load, repetitions, goals, options.tile_tokens), repetitions)


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; yields what takes one step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


def _circumstances(options: argparse.Namespace, started: str) -> dict[str, Any]:
    return {
        "server": options.server,
        "model": options.model,
        "device": options.device,
        "note": options.note,
        "content": options.content,
        "seed": options.seed,
        "client_load_average": round(os.getloadavg()[0], 2),
        "run": started,
        "commit": _commit(),
        "command": shlex.join(["lightvl", *sys.argv[1:]]),
    }


def _commit() -> str | None:
    """Returns the commit of the checkout that this runs from, if it is one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return count(width), count(height)


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    goodput = ["good/s"] if any("goodput" in row for row in rows) else []
    columns = ["load", "req/s", "tok/s", "TTFT p50", "p99", "TPOT p50", "p99", "ITL p99"]
    for column in [*columns, "e2e p50", "errors", *goodput]:
        table.add_column(column, justify="left" if column == "load" else "right")
    for row in rows:
        times = [
            row[key].get(which, float("nan"))
            for key, which in (
                ("ttft_ms", "p50"),
                ("ttft_ms", "p99"),
                ("tpot_ms", "p50"),
                ("tpot_ms", "p99"),
                ("itl_ms", "p99"),
                ("e2e_ms", "p50"),
            )
        ]
        table.add_row(
            row["load"],
            f"{row['requests_per_s']:.2f}",
            f"{row['output_tokens_per_s']:.0f}",
            *(f"{value:.1f}" for value in times),
            str(row["errors"]),
            *(f"{row['goodput']['requests_per_s']:.2f}" for _ in goodput),
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("times in milliseconds", style="dim")
    for message in dict.fromkeys(m for row in rows for m in row["messages"]):
        console.print(f"failed: {message}", markup=False)
