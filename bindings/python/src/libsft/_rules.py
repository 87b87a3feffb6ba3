"""Names for stop rules and early stopping. They only write keys of the configuration: when to stop is
decided by the engine, in the same way for every host."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Optional, Union

#: ``{"ema": 0.9}``, ``{"mean": 10}``, ``{"median": 5}`` or ``"none"``.
Smoothing = Union[str, Mapping[str, float]]
#: A number in the metric's own unit, or ``{"relative": 0.01}``.
MinDelta = Union[float, Mapping[str, float]]


class Rule:
    """A rule of the key ``stop``. What is None is left to the engine's default."""

    rule: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The rule as a configuration writes it."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"rule": self.rule, **{key: value for key, value in named.items() if value is not None}}


@dataclass(frozen=True)
class Target(Rule):
    """Stop when a metric is good enough, ``patience`` observations in a row."""

    rule: ClassVar[str] = "target"
    metric: str
    at_most: Optional[float] = None
    at_least: Optional[float] = None
    patience: Optional[int] = None
    min_steps: Optional[int] = None
    smoothing: Optional[Smoothing] = None


@dataclass(frozen=True)
class Plateau(Rule):
    """Stop after ``patience`` observations without an improvement of more than ``min_delta``.
    ``reference="hf"`` counts as transformers does."""

    rule: ClassVar[str] = "plateau"
    patience: int
    metric: Optional[str] = None
    min_delta: Optional[MinDelta] = None
    reference: Optional[str] = None
    greater_is_better: Optional[bool] = None
    min_steps: Optional[int] = None
    smoothing: Optional[Smoothing] = None


@dataclass(frozen=True)
class NonFinite(Rule):
    """Stop when the loss or the gradient norm is NaN or infinite. In force by itself, at once."""

    rule: ClassVar[str] = "non_finite"
    patience: Optional[int] = None


@dataclass(frozen=True)
class Divergence(Rule):
    """Stop when a metric exceeds ``factor`` times its best."""

    rule: ClassVar[str] = "divergence"
    metric: Optional[str] = None
    factor: Optional[float] = None
    patience: Optional[int] = None
    min_steps: Optional[int] = None
    smoothing: Optional[Smoothing] = None


@dataclass(frozen=True)
class Overfit(Rule):
    """Stop when the evaluation loss rises while the training loss falls."""

    rule: ClassVar[str] = "overfit"
    patience: Optional[int] = None
    min_delta: Optional[MinDelta] = None
    min_steps: Optional[int] = None
    smoothing: Optional[Smoothing] = None


@dataclass(frozen=True)
class Budget(Rule):
    """Stop when updates, epochs, tokens or seconds are used up."""

    rule: ClassVar[str] = "budget"
    max_steps: Optional[int] = None
    max_epochs: Optional[float] = None
    max_tokens: Optional[int] = None
    max_seconds: Optional[float] = None


class EarlyStopping(Mapping[str, Any]):
    """Early stopping as TRL's users know it: a mapping of the engine's keys, to be given to
    :func:`train` as a callback, or to a configuration as ``Config(…, **EarlyStopping(patience=3))``.

    It counts as ``EarlyStoppingCallback`` does; the rule :class:`Plateau` counts from the last improvement
    that exceeded its ``min_delta``. ``metric``, ``greater_is_better`` and ``restore_best`` are
    ``metric_for_best_model``, ``greater_is_better`` and ``load_best_model_at_end``; what is None is not set.
    """

    def __init__(
        self,
        patience: int = 1,
        threshold: float = 0.0,
        *,
        metric: Optional[str] = None,
        greater_is_better: Optional[bool] = None,
        restore_best: Optional[bool] = None,
    ) -> None:
        keys = {
            "early_stopping_patience": patience,
            "early_stopping_threshold": threshold,
            "metric_for_best_model": metric,
            "greater_is_better": greater_is_better,
            "load_best_model_at_end": restore_best,
        }
        self._keys = {key: value for key, value in keys.items() if value is not None}

    def __getitem__(self, key: str) -> Any:
        return self._keys[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._keys})"


class EarlyStoppingCallback(EarlyStopping):
    """:class:`EarlyStopping` with the arguments of transformers' class of this name."""

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float = 0.0) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)
