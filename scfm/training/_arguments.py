"""How does a configuration sound to transformers and torch?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from scfm.errors import ConfigError
from scfm.models import FoundationModel
from scfm.models._device import resolve_device
from scfm.training._config import PretrainConfig
from scfm.training._logs import HISTORY, Bar, Board, CsvLog, tensorboard_is_there
from scfm.training.objectives import Objective

CHECKPOINTS, BOARD = "checkpoints", "tensorboard"


def arguments(settings: PretrainConfig, steps: int, folder: Path, world: int) -> TrainingArguments:
    """Arguments of transformers' trainer.

    Parameters
    ----------
    settings
        Of the run.
    steps
        Optimizer steps.
    folder
        Of the run.
    world
        Number of processes.

    Raises
    ------
    ConfigError
        If the device is not there, or cannot do what is asked.
    """
    run, out = settings.run, settings.output
    device = resolve_device(run.device)
    if run.precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError("this GPU has no bfloat16; set run.precision to float32")
    more: dict[str, Any] = {}
    if run.fsdp:
        if device.type != "cuda" or world == 1:
            raise ConfigError(
                "run.fsdp shares the weights out over several GPUs; start the run with torchrun on a machine that has them, or "
                "set it to false"
            )
        more = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": ["Block"]}}
    elif world > 1:
        more = {"ddp_find_unused_parameters": True}
        if device.type == "cpu":
            more["ddp_backend"] = "gloo"
    return TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        max_steps=steps,
        learning_rate=run.learning_rate,
        lr_scheduler_type=run.schedule if run.schedule != "constant" else "constant_with_warmup",
        warmup_steps=min(run.warmup_steps, steps),
        weight_decay=run.weight_decay,
        max_grad_norm=run.clip,
        gradient_accumulation_steps=run.accumulation,
        bf16=run.precision == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=run.seed,
        save_strategy="steps",
        save_steps=out.checkpoint_every,
        save_total_limit=out.keep,
        logging_steps=out.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if settings.validation.share or settings.validation.groups else "no",
        eval_steps=out.evaluate_every or max(steps // 10, 50),
        report_to=[],
        disable_tqdm=True,
        **more,
    )


def callbacks(settings: PretrainConfig, objective: Objective, folder: Path) -> list[Any]:
    """Logs and the bar."""
    callbacks: list[Any] = [CsvLog(folder / HISTORY, [*objective.terms])]
    if settings.output.progress:
        callbacks.append(Bar())
    if settings.output.tensorboard and tensorboard_is_there():
        callbacks.append(Board(folder / BOARD))
    return callbacks


def tuned(model: FoundationModel, settings: PretrainConfig) -> torch.nn.Module:
    """The transformer with the attention, the compilation and the recomputation that are asked for."""
    run = settings.run
    transformer = model.transformer
    transformer.encoder.checkpointing = run.checkpointing
    if settings.model.attention is not None:
        transformer.config._attn_implementation = settings.model.attention
    if run.compile:
        for block in transformer.encoder.layers:
            block.compile(dynamic=True)
    return transformer
