"""Old names of modules that have moved: importing one warns, and gives what the new ones have."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# For each package, the old names of modules and their present names. A module that was divided has
# several.
_MOVED = {
    "jaxllm": """
        closeness = numerics.distance
        deviation = numerics.distance
        jsonable = strict_json
        origin = checkpoint_origin
        quickstart = commands.walkthroughs.quickstart
        orbax_layout = checkpointing.orbax_layout
        saved_step = checkpointing.orbax_layout
    """,
    "jaxllm.generation": "cached = incremental",
    "jaxllm.layers": """
        bias = attention.distance_bias
        cache = attention.cache
        cross_attention = attention.cross_attention
        expert_parallel = experts.expert_parallel
        groups = experts.grouped_rows
        mask = attention.mask
        moe = experts.moe
        position = attention.rope
        trace = hooks
    """,
    "jaxllm.interop": """
        bijection = rules.binding
        boxes = rules.boxes
        dcp = formats.pytorch.dcp
        directory = loading.checkpoint_dir
        export = saving.export
        hugging_face = reference.transformers_models
        index = formats.hf_index
        journal = conversion.journal
        lazy = loading.lazy_model
        load = loading.load
        native = formats.orbax
        optimizer_file = optimizer_state.optimizer_file
        parameter_order = optimizer_state.parameter_order
        parameters = loading.model_arrays
        plan = loading.plan
        planning = loading.plan
        ranges = rules.axis_ranges
        safetensors_file = formats.safetensors_file
        save = saving.save
        side = rules.pattern
        sizes = formats.byte_sizes
        sources = formats.lazy_tensor
        stream = loading.streaming.stream
        suggestion = inspection.suggest
        tensors = formats.stored_tensor
        together = saving.multihost
        torch_adamw = optimizer_state.torch_adamw
        torch_file = formats.pytorch.torch_zip
        torch_pickle = formats.pytorch.torch_pickle
        training_export = optimizer_state.export_state
        training_state = optimizer_state.load_state
        transfer = rules.transfer
        user_rules = loading.user_family
        verification = inspection.verify
        writing = formats.file_writer
    """,
    "jaxllm.interop.parity": """
        inputs = alignment.inputs
        judge = comparison
        metrics = numerics.metrics
        pack = recording.pack
        prompt = alignment.prompt
        recipe = execution.recipe
        rows = report.rows
        shelf = memory.array_store
    """,
    "jaxllm.train": """
        batches = data.batches
        diff = verify.diff
        equality = verify.equality
        handover = cross_framework
        held_out = data.held_out
        metrics = monitoring.metrics
        noise = verify.noise
        optimizer = optimizers.config, optimizers.optimizer
        outcomes = verify.outcomes
        pairs = data.pairs
        plan = cost
        plot = monitoring.plot
        schedule = optimizers.schedule
        stored = checkpoint_arrays
        tasks = data.tasks
        text = data.text, jaxllm.tokenization
        variants = verify.variants
        vectors = data.vectors
    """,
    "jaxllm.train.optimizers": "adamw = config, optimizer",
    "jaxllm.train.data": "tokenizers = jaxllm.tokenization",
}


def _present_names() -> dict[str, tuple[str, ...]]:
    """Returns the present names of each old one, in full."""
    found = {}
    for package, lines in _MOVED.items():
        for line in filter(None, map(str.strip, lines.splitlines())):
            old, names = line.split(" = ")
            found[f"{package}.{old}"] = tuple(
                name if name.startswith("jaxllm.") else f"{package}.{name}"
                for name in names.split(", ")
            )
    return found


MOVED = _present_names()


class _Package(ModuleType):
    """A package whose public names are kept when an old module of the same name is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        is_old = isinstance(value, ModuleType) and isinstance(value.__loader__, _Finder)
        if not (is_old and name in vars(self)):
            super().__setattr__(name, value)


class _Finder(MetaPathFinder, Loader):
    """Imports old names as modules that have the contents of the present ones."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        names = MOVED[module.__name__]
        # Python makes each imported module an attribute of its package.
        sys.modules[module.__name__.rpartition(".")[0]].__class__ = _Package
        warnings.warn(
            f"{module.__name__} is now {' and '.join(names)}", DeprecationWarning, stacklevel=2
        )
        for name in reversed(names):
            contents = vars(importlib.import_module(name))
            vars(module).update(
                {key: value for key, value in contents.items() if not key.startswith("__")}
            )


def install() -> None:
    """Lets old names be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
