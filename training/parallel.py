"""How the model is spread over the ranks: one function per measure, applied in the order in which they stand here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from models.errors import UserError
from training.config import LoraConfig, ParallelConfig
from training.model import S2VTransformer
from training.student import Student


class ParallelError(UserError, ValueError):
    """The ranks cannot be arranged as the config says."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of a run, arranged.

    ``mesh`` has the dimensions ``replicate``, ``shard``, ``ring`` (always 1, for diffusers) and ``ulysses``.
    """

    mesh: DeviceMesh
    device: torch.device

    @property
    def rank(self) -> int:
        """This process's number."""
        return dist.get_rank()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def readers(self) -> int:
        """Groups of ranks that read different data: all but those that share a sample's sequence."""
        return int(self.mesh["replicate"].size() * self.mesh["shard"].size())

    @property
    def reader(self) -> int:
        """The number of this process's group among these."""
        return int(
            self.mesh["replicate"].get_local_rank() * self.mesh["shard"].size() + self.mesh["shard"].get_local_rank()
        )

    @property
    def context(self) -> int:
        """Ranks that share a sample's sequence."""
        return int(self.mesh["ulysses"].size())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of ``values`` over the groups that read different data (a rank's twins in its context count once)."""
        total = values.to(self.device, torch.float64, copy=True)
        dist.all_reduce(total)
        return total / self.context

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        told = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return bool(told.item())


def arrange(config: ParallelConfig, device: torch.device, heads: int) -> Ranks:
    """Arrange the ranks of the running process group.

    Raises:
        ParallelError: if their number is not replicate x shard x context, or the heads cannot be divided.
    """
    world = dist.get_world_size()
    shard = config.shard or max(1, world // (config.replicate * config.context))
    if config.replicate * shard * config.context != world:
        raise ParallelError(
            f"parallel: replicate {config.replicate} x shard {shard} x context {config.context} makes "
            f"{config.replicate * shard * config.context} ranks, but {world} were started"
        )
    if heads % config.context:
        raise ParallelError(f"parallel.context={config.context} does not divide the model's {heads} attention heads")
    mesh = init_device_mesh(
        device.type,
        (config.replicate, shard, 1, config.context),
        mesh_dim_names=("replicate", "shard", "ring", "ulysses"),
    )
    return Ranks(mesh, device)


def add_adapters(transformer: S2VTransformer, config: LoraConfig) -> None:
    """Freeze the weights and put low-rank adapters beside the linear layers."""
    from peft import LoraConfig as PeftConfig

    transformer.requires_grad_(False)
    transformer.add_adapter(
        PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=list(config.targets), init_lora_weights=True)
    )


def share_context(transformer: S2VTransformer, ranks: Ranks) -> None:
    """Divide each sample's sequence over the ranks of a context (Ulysses, from diffusers)."""
    if ranks.context == 1:
        return
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ContextParallelConfig
    from diffusers.models._modeling_parallel import ParallelConfig as Arrangement

    # What `enable_parallelism` does, which looks for an accelerator even where the mesh is one of CPUs.
    context = ContextParallelConfig(ulysses_degree=ranks.context, mesh=ranks.mesh)
    arrangement = Arrangement(context_parallel_config=context)
    arrangement.setup(ranks.rank, dist.get_world_size(), ranks.device, mesh=ranks.mesh)
    for module in transformer.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = arrangement
    apply_context_parallel(transformer, context, transformer._cp_plan)


def recompute(transformer: S2VTransformer) -> None:
    """Recompute each block in the backward pass instead of keeping its activations."""
    transformer.enable_gradient_checkpointing()


def compile_blocks(transformer: S2VTransformer) -> None:
    """Compile each block in place: names stay, and equal blocks share one compiled code."""
    for block in transformer.blocks:
        block.compile()


def shard(student: Student, ranks: Ranks, precision: str) -> None:
    """Shard parameters, gradients and optimiser states (FSDP2, or HSDP if there are replicas).

    Gradients are *summed* over all ranks: the caller divides the loss by the number of samples in a step. Over the
    ranks of a context each gradient is a part of the whole, so that a mean there would be wrong; the sum is right
    everywhere.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    mesh = ranks.mesh["shard", "ring", "ulysses"]._flatten("sharded")
    if ranks.mesh["replicate"].size() > 1:
        mesh = ranks.mesh["replicate", "sharded"]
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    exact = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32, cast_forward_inputs=False)
    transformer = student.transformer
    # Steps between 1000 timesteps are lost in bf16.
    fully_shard(transformer.condition_embedder.time_embedder, mesh=mesh, mp_policy=exact)
    for block in transformer.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(transformer, mesh=mesh, mp_policy=policy)
    if student.text is not None:
        fully_shard(student.text, mesh=mesh, mp_policy=exact)
        register_fsdp_forward_method(student.text, "encode")
    for module in student.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def prepare(student: Student, ranks: Ranks, config: ParallelConfig) -> None:
    """Apply all that the config asks for."""
    if config.attention is not None:
        student.transformer.set_attention_backend(config.attention)
    share_context(student.transformer, ranks)
    if config.recompute:
        recompute(student.transformer)
    if config.compile:
        compile_blocks(student.transformer)
    shard(student, ranks, config.precision)
