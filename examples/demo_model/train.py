"""Trains the demo model for a given time on one GPU (or, to try it out, on the CPU).

python train.py --data DATA --tokenizer FOLDER --out OUT --seconds 500 [--start WEIGHTS]

What is evaluated and saved is a running mean of the weights; the last ones are kept beside it.
"""

import argparse
import copy
import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from conversation import TOKENS_PER_TILE
from evaluate import (
    BARS,
    Example,
    answer_all,
    held_out_later,
    interval_by_source,
    normalise,
    score,
)
from export import checkpoint_weights
from feed import Batch, Context, Feed
from mixture import SHARES, TEXT_ONLY
from model import DemoConfig, DemoModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

TEXT_ROWS = 256


@dataclass
class Log:
    """What is plotted later: loss by step, accuracy by time."""

    start: float = field(default_factory=time.monotonic)
    loss: list[dict[str, float]] = field(default_factory=list)
    accuracy: list[dict[str, float]] = field(default_factory=list)

    def seconds(self) -> float:
        return time.monotonic() - self.start


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="model.safetensors to go on from")
    parser.add_argument("--seconds", type=float, default=500.0, help="of training")
    parser.add_argument(
        "--all_seconds",
        type=float,
        default=math.inf,
        help="from the start of this process to the end of training, whichever is sooner",
    )
    parser.add_argument(
        "--most_seconds", type=float, default=math.inf, help="after which the process gives up"
    )
    parser.add_argument("--mean_steps", type=float, default=250.0, help="of the running mean")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--final_lr", type=float, default=0.02, help="share of --lr at the end")
    parser.add_argument("--warmup_steps", type=int, default=200)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--tiles", type=int, default=480, help="tiles in a step")
    parser.add_argument("--workers", type=int, default=13)
    parser.add_argument("--pool_share", type=float, default=1.0)
    parser.add_argument("--evaluate_every_s", type=float, default=75.0)
    parser.add_argument("--several_tiles", type=float, default=0.3, help="share of the steps")
    parser.add_argument(
        "--thin", type=int, default=4, help="evaluate on every nth example, at last on all"
    )
    parser.add_argument("--part", type=int, default=1, help="hold out one in so many examples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shares", type=json.loads, default=SHARES, help="JSON: scene -> weight")
    parser.add_argument("--freeze_tower", action="store_true", help="cheap: for a CPU")
    parser.add_argument("--no_compile", action="store_true")
    return parser.parse_args()


def make_optimizer(model: DemoModel, args: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW; norms, biases and LayerScale are not decayed."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learnt if p.ndim > 1]
    vectors = [p for p in learnt if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)


def schedule(step: int, progress: float, args: argparse.Namespace) -> float:
    """Linear warm-up by steps, then a cosine over the time given."""
    low = args.final_lr
    cosine = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, (step + 1) / args.warmup_steps) * cosine


def other_light(tiles: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalised pixels with a little other brightness, tint, contrast and noise.

    Args:
        tiles: uint8 [n, tiles of a sample, S, S, 3]; all tiles of a sample have the same light.
        dtype: Of the result, [N, 3, S, S].
    """
    device, rows, each = tiles.device, *tiles.shape[:2]
    gain = 1 + 0.12 * torch.randn((rows, 1, 1, 1, 1), device=device)
    tint = 0.05 * torch.randn((rows, 1, 3, 1, 1), device=device)
    offset = 0.12 * torch.randn((rows, 1, 1, 1, 1), device=device) + tint
    pixels = normalise(tiles)
    pixels = (pixels.unflatten(0, (rows, each)) * gain + offset).flatten(0, 1)
    pixels = pixels + 0.05 * torch.rand(1, device=device) * torch.randn_like(pixels)
    return pixels.to(dtype)


def answer_loss(hidden: Tensor, embedding: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of hidden states [n, T, C] against labels [n, T], -100 for none."""
    logits = F.linear(hidden, embedding)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


@dataclass
class Loss:
    """Cross-entropy over the answers' tokens; its two outer parts may be compiled."""

    model: DemoModel
    image_id: int
    light: Callable[[Tensor, torch.dtype], Tensor] = other_light
    of_answers: Callable[[Tensor, Tensor, Tensor], Tensor] = answer_loss

    def __call__(self, batch: Batch) -> Tensor:
        on_gpu = batch.ids.is_cuda
        dtype = torch.bfloat16 if on_gpu else torch.float32
        pixels = self.light(batch.tiles, dtype) if batch.tiles.shape[1] else None
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            # A batch without pictures must look to the compiler like the others.
            embedded = self.model.embed(batch.ids, pixels, self.image_id).to(dtype)
            hidden = self.model.language_model.model(embedded)
            # No answer begins before all picture tokens are over.
            first = TOKENS_PER_TILE * batch.tiles.shape[1]
            labels = torch.where(batch.marks[:, first + 1 :], batch.ids[:, first + 1 :], -100)
            embedding = self.model.language_model.model.embed_tokens.weight
            return self.of_answers(hidden[:, first:-1], embedding, labels)


def step_kind(rng: Random, several_tiles: float) -> int:
    """How many tiles the samples of a step have."""
    kinds = (1, 5, 3, 4, 2, TEXT_ONLY)
    shares = (0.95 - several_tiles, 0.56, 0.34, 0.1, 0.035, 0.015)
    weights = [
        s * several_tiles if k in {3, 4, 5} else s for k, s in zip(kinds, shares, strict=True)
    ]
    return rng.choices(kinds, weights)[0]


class Trainer:
    def __init__(self, args: argparse.Namespace, feed: Feed, context: Context) -> None:
        self.args, self.feed = args, feed
        self.device = feed.device
        self.tokenizer = context.writer.tokenizer
        torch.manual_seed(args.seed)
        self.model = DemoModel(DemoConfig()).to(self.device)
        if args.start:
            self.model.load_state_dict(load_file(args.start))
        self.model.vision_model.requires_grad_(not args.freeze_tower)
        self.mean = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizer = make_optimizer(self.model, args)
        self.loss = Loss(self.model, context.writer.image_id)
        self.rng, self.log, self.num_samples, self.step = Random(args.seed), Log(), 0, 0
        if not args.no_compile:
            self.compile()

    def compile(self) -> None:
        """One graph a layer, which all layers and kinds of batch share as far as shapes do."""
        torch._dynamo.config.recompile_limit = 32
        tower, text = self.model.vision_model, self.model.language_model.model
        for module in (tower.embeddings, self.model.mlp1, *tower.encoder.layers):
            module.compile(dynamic=False)
        for layer in text.layers:
            layer.compile(dynamic=True)
        self.loss.light = torch.compile(other_light, dynamic=False)
        self.loss.of_answers = torch.compile(answer_loss, dynamic=True)

    def warm_up(self) -> None:
        """Meets every kind of batch once before the clock starts."""
        for kind, rows in [(k, self.rows(k)) for k in (1, 5, 3, 4, 2, TEXT_ONLY)]:
            self.loss(self.feed.draw(kind, rows)).backward()
        self.model.zero_grad(set_to_none=True)

    def rows(self, kind: int) -> int:
        return self.args.tiles // kind if kind else min(TEXT_ROWS, self.args.tiles)

    def train_step(self, progress: float) -> Tensor:
        kind = step_kind(self.rng, self.args.several_tiles)
        batch = self.feed.draw(kind, self.rows(kind))
        loss = self.loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self.args.lr * schedule(self.step, progress, self.args)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # A short mean at first: the first steps are the worst.
        share = max(1 / self.args.mean_steps, 1 / (1 + self.step))
        new = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.mean.parameters()), new, share)
        self.num_samples += self.rows(kind)
        return loss.detach()

    def train(self, examples: list[Example]) -> None:
        """Steps until the time is over, with an evaluation now and then."""
        args, losses, next_evaluation = self.args, [], self.args.evaluate_every_s
        seconds = min(args.seconds, args.all_seconds - seconds_of_process())
        while self.log.seconds() < seconds:
            losses.append(self.train_step(self.log.seconds() / seconds))
            if len(losses) == 25:
                self.note_loss(torch.stack(losses).mean().item())
                losses.clear()
            if self.log.seconds() > next_evaluation:
                next_evaluation += args.evaluate_every_s
                self.save_weights(self.mean, "weights")
                self.evaluate(self.mean, examples[:: args.thin])

    def note_loss(self, loss: float) -> None:
        entry = {
            "step": self.step,
            "seconds": round(self.log.seconds(), 1),
            "samples": self.num_samples,
            "rendered": self.feed.num_rendered,
            "loss": round(loss, 4),
        }
        self.log.loss.append(entry)
        if len(self.log.loss) % 8 == 1:
            print(entry, flush=True)

    def evaluate(self, model: DemoModel, examples: list[Example]) -> list[str]:
        start = time.monotonic()
        stance = torch.compiler.set_stance("force_eager")
        on_gpu = self.device == "cuda"
        with self.feed.lock, stance, torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            answers = answer_all(model, self.tokenizer, examples, self.device)
        scores = {task: round(value, 4) for task, value in score(examples, answers).items()}
        self.log.accuracy.append({"seconds": round(self.log.seconds(), 1), **scores})
        shown = {t: scores.get(t) for t in (*BARS, "drawings_declined")}
        print("accuracy", round(time.monotonic() - start, 1), "s", shown, flush=True)
        return answers

    def save_weights(self, model: DemoModel, name: str) -> None:
        """bf16 weights in two shards of about equal size."""
        self.args.out.mkdir(parents=True, exist_ok=True)
        weights = checkpoint_weights(model)
        half, taken = sum(v.numel() for v in weights.values()) / 2, 0
        shards: list[dict[str, Tensor]] = [{}, {}]
        for key, value in weights.items():
            shards[taken > half][key] = value
            taken += value.numel()
        for number, shard in enumerate(shards):
            save_file(shard, self.args.out / f"{name}-{number}.safetensors")

    def save_report(self, examples: list[Example], answers: list[str]) -> None:
        """The log, the scores and every wrong answer."""
        interval = interval_by_source(examples, answers, "photos_declined")
        wrong = [
            {
                "task": e.task,
                "tiles": len(e.tiles),
                "question": e.question,
                "want": e.answer,
                "got": a,
            }
            for e, a in zip(examples, answers, strict=True)
            if a.casefold() != e.answer.casefold()
        ]
        report = {
            "arguments": {k: str(v) for k, v in vars(self.args).items()},
            "device": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "torch": torch.__version__,
            "steps": self.step,
            "samples": self.num_samples,
            "rendered": self.feed.num_rendered,
            "photos_declined_interval": interval,
            "loss": self.log.loss,
            "accuracy": self.log.accuracy,
        }
        (self.args.out / "report.json").write_text(json.dumps(report))
        (self.args.out / "wrong.json").write_text(json.dumps(wrong, indent=0))


def seconds_of_process() -> float:
    """Since this process was started (Linux)."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started = float(stat.read().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - started


def give_up_after(seconds: float) -> None:
    """Ends the process when the time is over, whatever it does."""
    if seconds < math.inf:
        timer = threading.Timer(max(0.0, seconds - seconds_of_process()), os._exit, (3,))
        timer.daemon = True
        timer.start()


def main() -> None:
    """Renders the held-out set while everything is compiled, trains, saves, evaluates."""
    args = parse_arguments()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    # Its plans are made anew for every length of a sequence, which ruins generation.
    torch.backends.cuda.enable_cudnn_sdp(False)
    tokenizer = Tokenizer.from_file(str(args.tokenizer / "tokenizer.json"))
    context = Context(args.data, tokenizer, args.shares)
    note("assets")
    feed = Feed(context, args.workers, device, args.pool_share, args.seed)
    examples = held_out_later(context.assets, args.workers, args.part)
    give_up_after(args.most_seconds)
    feed.open()
    trainer = Trainer(args, feed, context)
    while not feed.ready_to_draw():
        time.sleep(0.1)
    note("a chunk of every kind")
    trainer.warm_up()
    note("compiled")
    held_out = examples()
    note(f"held out: {len(held_out)}")
    trainer.log.start = time.monotonic()
    trainer.train(held_out)
    trainer.save_weights(trainer.mean, "weights")
    trainer.save_weights(trainer.model, "last")
    note("saved")
    trainer.save_report(held_out, trainer.evaluate(trainer.mean, held_out))
    note("evaluated")
    trainer.evaluate(trainer.model, held_out)
    feed.close()
    note("end")


def note(what: str) -> None:
    """Says what has been done by when."""
    print(f"{seconds_of_process():6.1f} s: {what}", flush=True)


if __name__ == "__main__":
    main()
