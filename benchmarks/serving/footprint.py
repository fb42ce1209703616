"""What the server costs beside the model's work: start, memory, idling, HTTP and scheduling."""

import time
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil
from tqdm import tqdm

from benchmarks.serving.client import Ours
from benchmarks.serving.decode_profile import make_engine
from benchmarks.serving.report import Report, Target
from benchmarks.serving.workload import Question, make_questions
from lightvl.engine.engine import Engine, Executor
from lightvl.engine.plan import StepPlan, StepResult
from lightvl.messages import AddRequest
from lightvl.tokenizer.tokenizer import load_tokenizer
from lightvl.types import SamplingParams

NUM_STARTS = 3
IDLE_S = 20.0
NUM_ROUNDS = 5
NUM_SHORT = 100
PAUSE_S = 0.5
SHORT_TOKENS = 1

READY_BOUND_S = 6.0
MEMORY_BOUND_MIB = 200.0
IDLE_BOUND_PERCENT = 1.0
REQUEST_BOUND_MS = 3.0
ARENA = "memfd:lightvl-arena"


def measure_footprint(model_dir: Path, model: str, num_threads: int, report: Report) -> None:
    """Adds the rows on start, idling, memory and the cost of a request."""
    tokenizer = load_tokenizer(model_dir, eos_ids=())
    starts = []
    for _ in tqdm(range(NUM_STARTS), desc=f"{model}, start"):
        begin_s = perf_counter()
        with Ours(model_dir, tokenizer, num_threads):
            starts.append(perf_counter() - begin_s)
    report.add_target(Target("start to ready", model, starts, READY_BOUND_S, False, "s"))
    with Ours(model_dir, tokenizer, num_threads) as ours:
        vocab_size = tokenizer.vocab_size
        ours.ask(make_questions(0, 4, vocab_size, 32))
        _measure_idling(ours, model, report)
        _measure_requests(ours, model_dir, model, vocab_size, report)


def _measure_idling(ours: Ours, model: str, report: Report) -> None:
    front = psutil.Process(ours.server.process.pid)
    time.sleep(1.0)
    before_s, begin_s = tree_cpu_s(front), perf_counter()
    for _ in tqdm(range(int(IDLE_S)), desc=f"{model}, idle"):
        time.sleep(1.0)
    share = 100 * (tree_cpu_s(front) - before_s) / (perf_counter() - begin_s)
    report.add_target(
        Target("idle server, all processes", model, [share], IDLE_BOUND_PERCENT, False, "% of core")
    )
    memory = pss_bytes(front.pid) / 2**20
    report.add_target(
        Target("front's memory without the arena", model, [memory], MEMORY_BOUND_MIB, False, "MiB")
    )


def tree_cpu_s(front: psutil.Process) -> float:
    """Returns the CPU time so far of the front and all its descendants."""
    times = [p.cpu_times() for p in (front, *front.children(recursive=True))]
    return sum(float(t.user + t.system) for t in times)


def pss_bytes(pid: int) -> int:
    """Returns a process's proportional memory without what it maps of the arena."""
    total, counts = 0, True
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if not name.endswith(":"):
            counts = ARENA not in line
        elif name == "Pss:" and counts:
            total += 1024 * int(rest.split()[0])
    return total


class _TimedExecutor:
    """Sums up what the steps' execution took."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.seconds = 0.0

    def execute(self, plan: StepPlan) -> StepResult:
        begin_s = perf_counter()
        result = self._executor.execute(plan)
        self.seconds += perf_counter() - begin_s
        return result


def _measure_requests(
    ours: Ours, model_dir: Path, model: str, vocab_size: int, report: Report
) -> None:
    """Short text requests over HTTP less the same work in this process, in turns.

    A round of either kind comes after a pause: threads that wait for the other side's next round
    would take its cores.
    """
    engine = make_engine(model_dir, 1024)
    timed = _TimedExecutor(engine._executor)
    engine._executor = timed
    differences = []
    for i in tqdm(range(NUM_ROUNDS), desc=f"{model}, short requests"):
        questions = make_questions(100 + i, NUM_SHORT, vocab_size, SHORT_TOKENS)
        texts = [question.text_ids for question in questions]
        time.sleep(PAUSE_S)
        over_http_s = median(_over_http(ours, ids) for ids in texts)
        time.sleep(PAUSE_S)
        direct_s = median(_direct(engine, timed, ids) for ids in texts)
        differences.append(1000 * (over_http_s - direct_s))
    report.add_target(
        Target("HTTP and scheduling, a request", model, differences, REQUEST_BOUND_MS, False, "ms")
    )


def _over_http(ours: Ours, ids: list[int]) -> float:
    """Returns the time from the connection to the last token."""
    (answer,) = ours.ask([Question(ids, None, SHORT_TOKENS)])
    return answer.token_s[-1] - answer.asked_s


def _direct(engine: Engine, timed: _TimedExecutor, ids: list[int]) -> float:
    """Returns what the executor alone needs for the request."""
    timed.seconds = 0.0
    sampling = SamplingParams(temperature=0.0, max_new_tokens=SHORT_TOKENS, ignore_eos=True)
    engine.handle(AddRequest(0, ids, sampling))
    while engine.step():
        pass
    return timed.seconds
