"""The baseline: transformers' `generate()` on the native form of the same checkpoint."""

import io
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import InternVLForConditionalGeneration, StoppingCriteria
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from benchmarks.serving.workload import Answer, Question
from lightvl.config import ModelConfig
from lightvl.testing.checkpoints import IMAGENET_MEAN, IMAGENET_STD
from lightvl.tokenizer.tokenizer import Tokenizer


class Clock(StoppingCriteria):
    """Notes when each token of the batch came; never stops."""

    def __init__(self) -> None:
        self.token_s: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Returns False for each sequence [S]."""
        self.token_s.append(perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Reference:
    """A loaded model; float32, all threads of this process.

    Args:
        native_dir: The checkpoint in the native layout.
        config: Of the same checkpoint.
        tokenizer: Of the same checkpoint.
    """

    name = "transformers"

    def __init__(self, native_dir: Path, config: ModelConfig, tokenizer: Tokenizer) -> None:
        model: Any = InternVLForConditionalGeneration.from_pretrained(
            native_dir, dtype=torch.float32
        )
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        self._model = model.eval()
        self._tokenizer = tokenizer
        tiling = config.tiling
        assert tiling is not None
        self._tokens_per_tile = tiling.tokens_per_tile
        self._processor = GotOcr2ImageProcessorPil(
            size={"height": tiling.tile_size, "width": tiling.tile_size},
            image_mean=IMAGENET_MEAN,
            image_std=IMAGENET_STD,
            min_patches=tiling.min_tiles,
            max_patches=tiling.max_tiles,
            crop_to_patches=True,
        )

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers equally long questions as one batch; decoding of pictures is in the time."""
        asked_s, clock = perf_counter(), Clock()
        pixels = [self._pixels(q.picture) for q in questions if q.picture is not None]
        rows = [self._prompt(question, x) for question, x in zip(questions, pixels, strict=True)]
        ids = torch.tensor(rows)
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=torch.cat(pixels),
                max_new_tokens=questions[0].num_tokens,
                do_sample=False,
                stopping_criteria=[clock],
            )
        drawn = out[:, ids.shape[1] :].tolist()
        return [Answer(asked_s, list(clock.token_s), row) for row in drawn]

    def _pixels(self, picture: bytes) -> Tensor:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        pixels: Tensor = self._processor(image, return_tensors="pt")["pixel_values"]
        return pixels

    def _prompt(self, question: Question, pixels: Tensor) -> list[int]:
        words = self._tokenizer
        filler = [words.img_context_id] * (len(pixels) * self._tokens_per_tile)
        ids: list[Any] = [words.img_start_id, *filler, words.img_end_id, *question.text_ids]
        return ids
