"""R-Drop for PyTorch: several dropout passes over one batch, and a divergence that ties their answers together.

Names are loaded when they are first used, so `import rdrop` costs nothing and the command line starts without torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rdrop import conventions as conventions
    from rdrop import schedule as schedule
    from rdrop.block_names import blocks
    from rdrop.diagnostics import ConsistencyGap, consistency_gap
    from rdrop.errors import NoEffectWarning
    from rdrop.linear_loss import linear_rdrop_loss
    from rdrop.loss import RDropLoss, RDropOutput, divergence, rdrop_loss
    from rdrop.passes import explain_passes, forward_passes
    from rdrop.plan import PassPlan
    from rdrop.stochastic import StochasticLayer, set_dropout, stochastic_layers
    from rdrop.structures import NotBatched

__all__ = [
    "ConsistencyGap",
    "NoEffectWarning",
    "NotBatched",
    "PassPlan",
    "RDropLoss",
    "RDropOutput",
    "StochasticLayer",
    "blocks",
    "consistency_gap",
    "conventions",
    "divergence",
    "explain_passes",
    "forward_passes",
    "linear_rdrop_loss",
    "rdrop_loss",
    "schedule",
    "set_dropout",
    "stochastic_layers",
]

__version__ = version("rdrop")

_HOME = {
    "block_names": ("blocks",),
    "diagnostics": ("ConsistencyGap", "consistency_gap"),
    "errors": ("NoEffectWarning",),
    "linear_loss": ("linear_rdrop_loss",),
    "loss": ("RDropLoss", "RDropOutput", "divergence", "rdrop_loss"),
    "passes": ("explain_passes", "forward_passes"),
    "plan": ("PassPlan",),
    "stochastic": ("StochasticLayer", "set_dropout", "stochastic_layers"),
    "structures": ("NotBatched",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"rdrop.{module}"), name)
    if name in __all__:
        return import_module(f"rdrop.{name}")
    raise AttributeError(f"module 'rdrop' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
