"""The training loop: gradient accumulation, mixed precision, data parallel, exact resume."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from .. import evaluation
from ..evaluation import IGNORE, Metrics
from ..models.fcn import FCN, Upscore
from ..models.unet import UNet
from ..models.weights import NETWORKS, describe, read_checkpoint, save_checkpoint
from .recipes import Recipe, parameter_groups


class Trainer:
    """Trains a network, image by image, so that images may differ in size.

    The samples of step s follow from the seed alone; with P processes (torchrun) each takes every P-th of them, and the
    gradients are summed: any number of processes computes the same step, to rounding. A checkpoint holds the network,
    the optimizer, the step and the state of the random numbers, so that a run that was killed goes on as if it had not
    been.

    Args:
        model: the network, on its device.
        dataset: ``dataset[i]`` is (image [3, H, W], labels [H, W]).
        recipe: learning rate, momentum, decay, reduction and batch.
        seed: of the order of the samples and of dropout.
        checkpoint: the file to write, every `save_every` steps and at the end, and to resume from if it exists.
        autocast: the dtype of mixed precision, bfloat16 say; None for none.
        about: the checkpoints' entry "network", which `fcn-kernels segment` reads; by default
            ``models.describe(model)``, which does not know the preprocessing and the names of the classes.

    Raises:
        ValueError: an empty dataset, save_every below 1, or a checkpoint that is broken, without a training's state,
            or of another seed, upsampling or network.
    """

    def __init__(
        self,
        model: FCN | UNet,
        dataset: torch.utils.data.Dataset,
        recipe: Recipe,
        *,
        seed: int = 0,
        checkpoint: str | os.PathLike | None = None,
        save_every: int = 1000,
        autocast: torch.dtype | None = None,
        about: Mapping[str, object] | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("Trainer: the dataset is empty")
        if save_every < 1:
            raise ValueError(f"Trainer: save_every must be at least 1, got {save_every}")
        self.model, self.dataset, self.recipe, self.seed = model, dataset, recipe, seed
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.save_every, self.autocast = save_every, autocast
        known = isinstance(model, tuple(NETWORKS.values()))
        self.about = dict(about) if about is not None else describe(model) if known else {}
        self.device = next(model.parameters()).device
        self.step = 0
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        torch.manual_seed(seed + self.rank)
        state = None
        if self.checkpoint is not None and self.checkpoint.exists():
            state = read_checkpoint(self.checkpoint)
            self._load_model(state)  # first: it may turn a buffer into a parameter
        self.optimizer = torch.optim.SGD(parameter_groups(model, recipe), lr=recipe.lr, momentum=recipe.momentum)
        if state is not None:
            self._resume(state)

    def samples(self, step: int) -> list[int]:
        """The indices of a step's batch: permutations of the dataset, one after the other, cut into batches."""
        count, batch = len(self.dataset), self.recipe.batch
        chosen = []
        for position in range(step * batch, (step + 1) * batch):
            epoch, place = divmod(position, count)
            chosen.append(self._order(epoch)[place])
        return chosen

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_epoch", None) != epoch:
            random = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._permutation = epoch, torch.randperm(len(self.dataset), generator=random).tolist()
        return self._permutation

    def run(self, steps: int, report: Callable[[int, float], None] | None = None) -> float:
        """Train until `steps` steps are done in all; returns the last loss. ``report(step, loss)`` after each."""
        self.model.train()
        loss = float("nan")
        while self.step < steps:
            loss = self._one_step()
            self.step += 1
            if report is not None:
                report(self.step, loss)
            if self.checkpoint is not None and (self.step % self.save_every == 0 or self.step == steps):
                self.save()
        return loss

    def _one_step(self) -> float:
        mine = [self.dataset[i] for i in self.samples(self.step)[self.rank :: self.world]]
        divisor = 1.0
        if self.recipe.reduction == "mean":
            labels = [self.model.crop_target(labels) for _, labels in mine]
            counted = torch.tensor(float(sum(int((part != IGNORE).sum()) for part in labels)), device=self.device)
            divisor = max(self._sum(counted).item(), 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for image, labels in mine:
            with self._precision():
                image, labels = image[None].to(self.device), labels[None].to(self.device)
                loss = self.model.loss(image, labels, ignore_index=IGNORE, reduction="sum") / divisor
            loss.backward()
            total += loss.detach()
        self._share_gradients()
        self.optimizer.step()
        return self._sum(total).item()

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def _sum(self, value: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def _share_gradients(self) -> None:
        if self.world == 1:
            return
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = grad.view_as(p)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint; with several processes each calls it, and the first one writes."""
        random = torch.get_rng_state()
        states = [random]
        if self.world > 1:
            states = [torch.empty_like(random) for _ in range(self.world)]
            dist.all_gather(states, random) if self.device.type == "cpu" else dist.all_gather_object(states, random)
        if self.rank == 0:
            state = {
                "model_state_dict": self.model.state_dict(),
                "network": self.about,
                "upsampling": {name: layer.upsampling for name, layer in self._upscores().items()},
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seed": self.seed,
                "random": states,
                "device_random": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            }
            save_checkpoint(state, self.checkpoint)
        if self.world > 1:
            dist.barrier()

    def _upscores(self) -> dict[str, Upscore]:
        return {name: layer for name, layer in self.model.named_modules() if isinstance(layer, Upscore)}

    def _load_model(self, state: Mapping) -> None:
        """The network of a checkpoint. Where it learned an upsampling that is fixed here, it is learned here too."""
        needed = ("seed", "step", "optimizer", "model_state_dict", "upsampling", "random", "device_random")
        lacking = [key for key in needed if key not in state]
        if lacking:
            raise ValueError(
                f"Trainer: no training can be resumed from {self.checkpoint}: it lacks {', '.join(lacking)}"
            )
        if state["seed"] != self.seed:
            raise ValueError(f"Trainer: {self.checkpoint} was trained with seed {state['seed']}, not {self.seed}")
        for name, layer in self._upscores().items():
            kind = state["upsampling"].get(name, layer.upsampling)
            if kind != layer.upsampling and layer.upsampling != "fixed":
                raise ValueError(
                    f"Trainer: {self.checkpoint} was trained with a {kind} {name}, not with a {layer.upsampling} one"
                )
            if kind != layer.upsampling:
                layer.become(kind, state["model_state_dict"][f"{name}.weight"])
        try:
            self.model.load_state_dict(state["model_state_dict"])
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"Trainer: {self.checkpoint} is of another network: {reason}") from error

    def _resume(self, state: Mapping) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        if len(state["random"]) == self.world:
            torch.set_rng_state(state["random"][self.rank].cpu())
        if state["device_random"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["device_random"].cpu())


def evaluate(model: FCN | UNet, dataset: torch.utils.data.Dataset, *, ignore_index: int = IGNORE) -> Metrics:
    """The metrics over a dataset, image by image; see `fcn_kernels.evaluation.evaluate`."""
    pairs = (dataset[index] for index in range(len(dataset)))
    batches = ((image[None], labels[None]) for image, labels in pairs)
    return evaluation.evaluate(model, batches, model.num_classes, ignore_index=ignore_index)
