"""The PEFT tuner that replaces linear layers with `SVFLinear`."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from threading import RLock
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from experts.outside.errors import UserError, unknown
from experts.svf.decomposition import each_matrix
from experts.svf.layer import SVFLinear
from experts.svf.linear import multiplies, resolve_all_linear, tied
from experts.svf.mixing import Batch, LayerMixture, LoraFactors, expect_rows, name_saved_rows, note_shape, running
from experts.svf.names import fault_in_adapter_name, plain_modules, plain_name
from experts.svf.quantised import floating_dtype, is_quantised, shape_of, unpack
from experts.svf.rows import rows, shared
from experts.svf.scaled import SVFLayer
from experts.svf.stacks import SVFExperts, SVFStack, fused_matrices, fused_parameters, refuse_unsuitable
from experts.svf.targets import HEADS, check_names, module_names, targeted_parameters
from experts.svf.verbs import PeftVerbs
from experts.svf.watching import orders_in

# Words that a parameter's name holds beside the adapter's name and the modules' own names.
OWN_PARTS = ("svf_z", "modules_to_save", "token_adapter", "trainable_tokens_delta")

# Held while experts come and go, and while a call takes what it will run on from them, but not while it runs.
_changing = RLock()


class SVFModel(PeftVerbs):
    """A model whose chosen linear layers, and stacks of a mixture's matrices, carry SVF experts.

    Made by `get_peft_model(base, SVFConfig(...))`.
    """

    prefix = "svf_"
    tuner_layer_cls = SVFLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (the base class's name and type)
    kept_mixtures = 2  # mixtures whose merged weights stay in memory, each set as large as the adapted matrices

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config: Any = self.peft_config[adapter_name]
        fault = fault_in_adapter_name(adapter_name)
        if fault:
            raise UserError(f"{adapter_name!r} cannot name an adapter: {fault}; choose another name")
        for module in model.modules():
            if isinstance(module, nn.Linear):
                unpack(module)
        others = [z for module in model.modules() if isinstance(module, SVFLayer) for z in module.svf_z.values()]
        trained = [z.requires_grad for z in others]
        everywhere = config.target_modules == "all-linear"
        try:
            with _changing, warnings.catch_warnings():
                # PEFT looks for them among modules only; `check_names` has looked for them everywhere.
                warnings.filterwarnings("ignore", "The following rank_pattern keys did not match")
                super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            what = "no linear layer" if everywhere else "nothing that target_modules names"
            if isinstance(config.target_modules, str) and config.target_modules.isidentifier():
                what += (
                    f" (a string is a regular expression for whole names; a list, [{config.target_modules!r}], has "
                    "their ends)"
                )
            raise UserError(
                f"the base has {what}: SVF adapts nn.Linear, transformers' Conv1D, and both as bitsandbytes quantises "
                "them; model.named_modules() lists the names"
            ) from error
        # PEFT takes parameters for the new adapter's if their path contains its name, such as "mlp".
        for z, was_trained in zip(others, trained, strict=True):
            z.requires_grad_(was_trained)
        if adapter_name == "ref" and config is self.peft_config.get("default"):
            self._copy_reference(model)
        layers = [module for module in model.modules() if isinstance(module, SVFLayer)]
        with _changing:
            each_matrix(lambda layer: layer.decompose(), layers, next(model.parameters()).device)
        if note_shape not in model._forward_pre_hooks.values():
            model.register_forward_pre_hook(note_shape, with_kwargs=True)
        for module in model.modules():
            if (
                isinstance(module, AuxiliaryTrainingWrapper)
                and name_saved_rows not in module._forward_pre_hooks.values()
            ):
                module.register_forward_pre_hook(name_saved_rows, with_kwargs=True)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def delete_adapter(self, adapter_name: str) -> None:
        with _changing:
            super().delete_adapter(adapter_name)

    @property
    def loras(self) -> Set[str]:
        """The names of the LoRAs that `mixed` knows beside the experts. PEFT does not know them."""
        return {name for module in self.model.modules() if isinstance(module, SVFLinear) for name in module.svf_loras}

    def add_lora(self, name: str, factors: Mapping[str, LoraFactors]) -> None:
        """Carries a LoRA beside the experts, for mixtures to name; nothing changes for calls that do not name it.

        Args:
            factors: matrix name in the base → the factors that the LoRA adds there.

        Raises:
            UserError: if the name is taken, or a matrix is not a linear layer of the base with weights of that shape.
        """
        modules = plain_modules(self.model)
        with _changing:
            layers = {matrix: self._layer_for_lora(name, matrix, modules, *factors[matrix]) for matrix in factors}
            if name in self.peft_config or self._carries_another(name, layers, factors):
                raise UserError(f"the model carries {name!r} already; drop it first, or choose another name")
            for matrix, layer in layers.items():
                if layer is not modules[matrix]:
                    parent, _, child = matrix.rpartition(".")
                    self._replace_module(modules[parent], child, layer, modules[matrix])
                weight = layer.base_layer.weight
                layer.svf_loras[name] = LoraFactors(*(part.to(weight.device, layer.dtype) for part in factors[matrix]))

    def _layer_for_lora(
        self, name: str, matrix: str, modules: Mapping[str, nn.Module], a: Tensor, b: Tensor
    ) -> SVFLinear:
        """The layer of a matrix, or a new one to replace the base's own."""
        target = modules.get(matrix)
        if target is None:
            raise UserError(f"the LoRA {name!r} adapts {matrix}, which the base does not have")
        if not isinstance(target, SVFLinear):
            self._refuse_other_than_dense(target, matrix)
        if isinstance(target, SVFLinear):
            layer = target
        else:
            dtype = floating_dtype(self.model.parameters())
            layer = SVFLinear(cast(nn.Linear, target), dtype=dtype).train(target.training)
        shape, wanted = [layer.out_features, layer.in_features], [len(b), a.shape[1]]
        if wanted != shape:
            raise UserError(f"the LoRA {name!r} is for a {matrix} of shape {wanted}, but the base's has {shape}")
        return layer

    def _carries_another(self, name: str, layers: Mapping[str, SVFLinear], factors: Mapping[str, LoraFactors]) -> bool:
        """Whether the layers already carry a different LoRA of this name: a base may be wrapped more than once."""
        if name not in self.loras:
            return False
        carried = {matrix: layer.svf_loras.get(name) for matrix, layer in layers.items()}
        return any(
            own is None or not all(torch.equal(x, y.to(x)) for x, y in zip(own, factors[matrix], strict=True))
            for matrix, own in carried.items()
        )

    def drop_lora(self, name: str) -> None:
        """Lets a LoRA go; calls that run under it finish as they began."""
        with _changing:
            for module in self.model.modules():
                if isinstance(module, SVFLinear):
                    module.svf_loras.pop(name, None)

    @contextmanager
    def mixed(
        self,
        names: Sequence[str],
        weights: Tensor,
        per_matrix: Mapping[str, Tensor] | None = None,
        *,
        merge: bool = True,
        of_tokens: Tensor | None = None,
    ) -> Iterator[None]:
        """Within the block, this thread or task runs every row of a batch under its own z_b = 1 + Σ_k α_bk (z_k − 1).

        A LoRA among them adds α_bk B_k A_k to its matrices.

        Rows that all share one mixture run on merged weights, which are kept for the next batch. Beam search, and
        sampling several answers, may repeat the rows. Whatever others run meanwhile is under mixtures of their own, or
        under the active experts. For inference only.

        Args:
            names: K experts of this model, or LoRAs that it carries beside them.
            weights: α [B, K]; a row of zeros is the base.
            per_matrix: α [B, K] for the matrices that have weights of their own, by the matrices' names in the base.
            merge: whether rows that all share one mixture run on merged weights, which pays off in long runs.
            of_tokens: integers [R, T], the row of `weights` that each token of the next forwards is under, for rows
                that hold several texts end to end (`position_ids` start again with each); None gives row b row b.

        Raises:
            UserError: if an expert does not exist, the weights have another shape or are not finite, a matrix is not
                adapted, experts are merged into the base, or rows have different mixtures for a stack.
        """
        known = self.peft_config.keys() | self.loras
        for name in names:
            if name not in known:
                raise unknown("expert", name, known)
        modules = plain_modules(self.model)
        layers = {name: m for name, m in modules.items() if isinstance(m, SVFLinear)}
        stacks = {name: m for name, m in modules.items() if isinstance(m, SVFStack)}
        alphas = dict.fromkeys([*layers, *stacks], weights)
        for matrix, own in (per_matrix or {}).items():
            if matrix not in alphas:
                raise unknown("adapted matrix", matrix, alphas)
            alphas[matrix] = own
        for alpha in alphas.values():
            if alpha.shape != (len(weights), len(names)) or not torch.isfinite(alpha).all():
                raise UserError(f"weights must be finite and [rows, {len(names)}], one column per expert")
        if any(layer.merged for layer in (*layers.values(), *stacks.values())):
            raise UserError("experts are merged into the base's weights; call unmerge_adapter() before mixing")
        if of_tokens is not None and not (
            of_tokens.ndim == 2
            and not of_tokens.is_floating_point()
            and 0 <= of_tokens.min() <= of_tokens.max() < len(weights)
        ):
            raise UserError(
                f"of_tokens must hold whole numbers [rows, tokens], each the number of one of {len(weights)} mixtures"
            )
        batch = Batch(len(weights), of_tokens)
        mixtures: dict[nn.Module, LayerMixture] = {}
        with _changing, torch.no_grad():
            mixtures |= {stack: stack.mixture(names, alphas[matrix], matrix) for matrix, stack in stacks.items()}
            if not any(alpha.any() for alpha in alphas.values()):
                mixtures |= dict.fromkeys(layers.values(), LayerMixture())
            elif merge and all((alpha == alpha[:1]).all() for alpha in alphas.values()):
                one_for_all = self._shared(names, alphas, layers)
                mixtures |= {layer: one_for_all[matrix] for matrix, layer in layers.items()}
            else:
                orders = orders_in(self.model)
                mixtures |= {
                    layer: rows(layer, names, alphas[matrix], matrix, batch, orders.get(matrix))
                    for matrix, layer in layers.items()
                }
        saved = self._saved_modules(names, weights)
        if saved and of_tokens is not None:
            raise UserError(
                "experts that were saved with modules of their own (modules_to_save) cannot share a row; leave out "
                "of_tokens"
            )
        with running(self.model, batch, {**mixtures, **saved}):
            yield

    def runs_rows(self, names: Sequence[str]) -> bool:
        """Whether rows with different mixtures of these experts can share a batch, because no layer refuses them."""
        layers = {name: m for name, m in plain_modules(self.model).items() if isinstance(m, SVFLayer)}
        adapted = [name for name, layer in layers.items() if any(map(layer.carries, names))]
        if any(isinstance(layers[name], SVFStack) for name in adapted):
            return False
        return all(order.axis is not None for name, order in orders_in(self.model).items() if name in adapted)

    def _shared(
        self, names: Sequence[str], alphas: Mapping[str, Tensor], layers: Mapping[str, SVFLinear]
    ) -> dict[str, LayerMixture]:
        """How each layer runs the mixture that all rows share: kept from before, or made now."""
        kept: OrderedDict[Any, dict[str, LayerMixture]] = self.__dict__.setdefault("_kept", OrderedDict())
        own = {m: [k for k, name in enumerate(names) if layer.carries(name)] for m, layer in layers.items()}
        key = tuple(
            (matrix, tuple(alphas[matrix][0, own[matrix]].tolist()), layer.version([names[k] for k in own[matrix]]))
            for matrix, layer in layers.items()
            if own[matrix]
        )
        if key not in kept:
            while len(kept) >= self.kept_mixtures:
                kept.popitem(last=False)
            kept[key] = {m: shared(layer, names, alphas[m][0], m) for m, layer in layers.items()}
        kept.move_to_end(key)
        return kept[key]

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT's `adapter_names=[…]`, one name per row, where "__base__" is the base."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("adapter_names is for inference; call eval() first")
        if not isinstance(adapter_names, list | tuple) or not all(isinstance(name, str) for name in adapter_names):
            raise UserError(f"adapter_names must be a list with a name for each row; got {adapter_names!r}")
        names = sorted({*adapter_names} - {"__base__"})
        weights = torch.tensor([[float(row == name) for name in names] for row in adapter_names])
        with self.mixed(names, weights.view(len(adapter_names), len(names))):
            expect_rows(self.model, args, kwargs)
            yield

    def _saved_modules(self, names: Sequence[str], weights: Tensor) -> dict[nn.Module, list[str]]:
        """Module saved whole with experts (`modules_to_save`), such as a head → for each row, whose module it takes.

        Raises:
            UserError: if a row has only a part of an expert that has such modules.
        """
        modules = [module for module in self.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        if not any(name in module._adapters for module in modules for name in names):
            return {}
        if not (((weights == 0) | (weights == 1)).all() and (weights.sum(1) <= 1).all()):
            raise UserError(
                "experts that were saved with modules of their own (modules_to_save) cannot be mixed; use one per row"
            )
        rows = [names[int(row.argmax())] if row.any() else "__base__" for row in weights]
        return {module: [name if name in module._adapters else "__base__" for name in rows] for module in modules}

    @staticmethod
    def _copy_reference(model: nn.Module) -> None:
        """Sets "ref" to "default", for TRL's trainers.

        They add "ref", the reference for the KL, under the very configuration of a trained "default", and copy the
        parameters with `.default.` in their names. Ours end in the adapter's name, as transformers' loader expects.
        """
        for module in model.modules():
            if isinstance(module, SVFLayer) and not module.svf_z["ref"].is_meta:
                module.svf_z["ref"].data.copy_(module.svf_z["default"])

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        modules = {name.replace("_fsdp_wrapped_module.", ""): module for name, module in model.named_modules()}
        places = [n for n, m in modules.items() if isinstance(m, SVFLayer | AuxiliaryTrainingWrapper | nn.Embedding)]
        wrapped = [m for m in modules.values() if isinstance(m, AuxiliaryTrainingWrapper)]
        places += [name for wrapper in wrapped for name, _ in wrapper.named_parameters()]
        if {*OWN_PARTS, *".".join(places).split(".")} & {*unwanted_adapter_names}:
            # PEFT leaves out whatever has another adapter's name in its path: all MLPs, for "default" beside "mlp".
            for key, tensor in model.state_dict().items():
                state_dict.setdefault(key, tensor)
        layers = [n for n, m in modules.items() if isinstance(m, SVFLayer) and adapter_name in m.svf_z]
        return {key: state_dict[key] for key in (f"{name}.svf_z.{adapter_name}" for name in layers)}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """The vector's name in a file, `<matrix>.svf_z`, with the matrix's name in the plain base."""
        return plain_name(re.sub(rf"\.svf_z\.{re.escape(adapter_name)}$", ".svf_z", key))

    def _check_target_module_exists(self, peft_config: Any, key: str) -> Any:  # type: ignore[override]
        if isinstance(self.model.get_submodule(key.rpartition(".")[0]), SVFExperts):
            return False  # it stands in for a parameter, under the parameter's name
        return check_target_module_exists(peft_config, plain_name(key))

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        check_names(peft_config, model)
        if common := sorted(name for name in tied(model) if check_target_module_exists(peft_config, name)):
            raise UserError(
                f"{common[0]} shares its weight with another layer, which an expert would change too; leave it out of "
                "target_modules"
            )
        self._refuse_full_rank(peft_config, model)
        compiled = any("_orig_mod" in name.split(".") for name, _ in model.named_modules())
        if compiled and (peft_config.modules_to_save or peft_config.trainable_token_indices):
            raise UserError(
                "PEFT cannot load modules_to_save into a compiled model; load the adapters first, then compile it"
            )

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        heads = HEADS.get(peft_config.task_type, ())
        if heads:  # for some tasks PEFT adds them too late, when the heads are already adapted
            saved = peft_config.modules_to_save or []
            peft_config.modules_to_save = [*saved, *(head for head in heads if head not in saved)]
        if peft_config.target_modules == "all-linear":
            resolve_all_linear(peft_config, getattr(self.model, "_orig_mod", self.model), heads)
        return super()._prepare_adapter_config(peft_config, model_config)

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        rank = peft_config.rank_of(plain_name(current_key))
        if isinstance(target, SVFLinear):
            target.update_layer(adapter_name, rank, peft_config.inference_mode)
            return
        self._refuse_unsuitable(target, current_key)
        dtype = floating_dtype(self.model.parameters())
        layer = SVFLinear(target, adapter_name, rank, peft_config.inference_mode, dtype)  # type: ignore[arg-type]
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further expert is not trainable until it is made active
        self._replace_module(parent, target_name, layer, target)

    def _inject_parameters(
        self, peft_config: Any, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        names = targeted_parameters(peft_config, model)
        modules, fused = plain_modules(model), fused_parameters(model)
        for name in names:
            owner, _, parameter = name.rpartition(".")
            if parameter not in getattr(modules[owner], "stacks", {}):
                refuse_unsuitable(name, modules[owner], fused[name])
            if not isinstance(modules[owner], SVFExperts):
                parent, _, child = owner.rpartition(".")
                modules[owner] = SVFExperts(modules[owner])
                setattr(modules[parent], child, modules[owner])
            stack = cast(SVFExperts, modules[owner]).stack(parameter)
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                stack.update_layer(adapter_name, peft_config.rank_of(name), peft_config.inference_mode)
            if adapter_name not in self.active_adapters:
                stack.svf_z[adapter_name].requires_grad_(False)  # until it is made active
        return names

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper | SVFExperts):
            setattr(parent, child_name, new_module)  # when unloading, the module comes whole
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _refuse_unsuitable(self, target: nn.Module, name: str) -> None:
        self._refuse_other_than_dense(target, name)
        embeddings = getattr(self.model, "get_input_embeddings", lambda: None)()
        if embeddings is not None and target.weight is embeddings.weight:
            raise UserError(
                f"{name} shares its weight with the input embeddings, which an expert must not change; "
                "leave it out of target_modules"
            )

    def _refuse_full_rank(self, config: Any, model: nn.Module) -> None:
        """Raises UserError if the factors beside quantised matrices would be as large as the dense matrices."""
        modules = {plain_name(name): module for name, module in model.named_modules()}
        targets = [name for name in module_names(model) if check_target_module_exists(config, name)]
        factors, matrices = 0, 0
        for name in targets:
            layer = modules[name].base_layer if isinstance(modules[name], SVFLinear) else modules[name]
            if isinstance(layer, nn.Linear) and is_quantised(layer):
                m, n = shape_of(layer)
                factors += min(m, n, config.rank_of(name) or n) * (m + n)
                matrices += m * n
        if matrices and factors >= matrices:
            raise UserError(
                "an expert with this many singular values has factors as large as the dense weights, which a quantised "
                "base is meant to avoid: limit its rank, to 64 for example, or load the base without quantisation"
            )

    @staticmethod
    def _refuse_other_than_dense(target: nn.Module, name: str) -> None:
        kind = type(target).__name__
        if fused_matrices(target) or isinstance(target, SVFExperts):
            raise UserError(
                f"{name} ({kind}) holds the matrices of a mixture of experts fused into one tensor, and is not a "
                "linear layer: leave it out of target_modules, and name its parameters in target_parameters"
            )
        if not isinstance(target, nn.Linear | Conv1D):
            raise UserError(
                f"{name} is a {kind}, but SVF adapts only torch.nn.Linear and transformers' Conv1D; leave it out of "
                "target_modules"
            )
        weight = target.weight
        if is_quantised(target):
            return
        # Other quantisers keep packed integers, 8-bit floats, or a tensor class of their own.
        dense = type(weight.data) is torch.Tensor and weight.dtype.is_floating_point and weight.dtype.itemsize >= 2
        if not dense:
            raise UserError(
                f"{name} is quantised ({kind}, {str(weight.dtype).removeprefix('torch.')}): the only quantised "
                "layers that SVF adapts are bitsandbytes'; load the base without quantisation, or with "
                "load_base(…, quantization='nf4')"
            )
        if not multiplies(target):
            raise UserError(
                f"{name} is a {kind}, which does more than multiply by its weight; leave it out of target_modules"
            )
