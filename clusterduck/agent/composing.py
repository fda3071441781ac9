"""What composing the runs of a sweep has in common, done once: most of them differ in values alone, so that the
defaults list and the configuration before the values are the same.

The fork server learns that of some runs, and every run forked from it takes it from there. The rest of composing stays
Hydra's own, and what is learned is kept only if composing with it gives what Hydra gives without.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hydra._internal.config_loader_impl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import Overrides
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import Container, DictConfig, ListConfig
from omegaconf.basecontainer import BaseContainer

from clusterduck.launch import freeze

hydras: Any = hydra._internal.config_loader_impl

#: So many choices of config groups are learned at most, and only those that at least so many runs of the launch make:
#: learning one takes twice as long as composing a run does.
MOST_CHOICES, LEAST_RUNS = 4, 10


@dataclass
class _Learned:
    """A defaults list, and the configuration that it makes before any value is overridden."""

    defaults: Any
    config: DictConfig


@dataclass
class Composing:
    """What composing has in common, by what it depends on, and overrides as Hydra parses them, by their text; all is
    handed out without being copied, to a process that composes one run."""

    _learned: dict[Any, _Learned] = field(default_factory=dict)
    _parsed: dict[str, Any] = field(default_factory=dict)

    def learn(self, loader: Any, sweep_config: DictConfig, overrides: list[str]) -> DictConfig:
        """Compose a run, and keep what others may have in common with it. Returns the run's configuration.

        Nothing is kept where it would depend on more than the overrides (a resolver, a file), or is told of (warnings).

        Raises:
            Exception: what is wrong with the run's configuration.
        """
        found: dict[Any, _Learned] = {}
        parsed: dict[str, Any] = {}
        with warnings.catch_warnings(record=True) as warned, _record_parsing(parsed), _record(found) as asked:
            warnings.simplefilter("always")
            config: DictConfig = loader.load_sweep_config(sweep_config, overrides)
        if asked or warned or not all(freeze.is_in_memory(source) for source in loader.get_sources()):
            return config
        copied = Composing(copy.deepcopy(found), copy.deepcopy(parsed))
        with copied.used():
            again = loader.load_sweep_config(sweep_config, overrides)
        if not copied._learned and is_same(config, again):
            self._learned |= found
            self._parsed |= parsed
        return config

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Within this, Hydra's config loader takes what was learned."""
        handed_out: list[_Learned] = []
        create, compose = hydras.create_defaults_list, hydras.ConfigLoaderImpl._compose_config_from_defaults_list

        def create_defaults_list(**arguments: Any) -> Any:
            key, overrides = _key(arguments)
            learned = self._learned.pop(key, None)
            if learned is None:
                return create(**arguments)
            handed_out.append(learned)
            values = overrides.config_overrides
            learned.defaults.overrides.config_overrides = values
            return dataclasses.replace(learned.defaults, config_overrides=values)

        def compose_config(loader: Any, defaults: Any, repo: Any) -> Any:
            for learned in handed_out:
                if learned.defaults.defaults is defaults:
                    return learned.config
            return compose(loader, defaults, repo)

        def parse(parser: Any, text: str, rule: str) -> Any:
            known = self._parsed.pop(text, None) if rule == "override" else None
            return parse_rule(parser, text, rule) if known is None else known

        parse_rule = OverridesParser.parse_rule
        with (
            _in_place_of_hydras(create_defaults_list, compose_config),
            _sources_in_common(),
            _parsing_by(parse),
        ):
            yield


def worth_learning(runs: Sequence[list[str]], groups: set[str]) -> list[list[str]]:
    """Runs that make choices which many others make too, the most frequent first, and at least one run.

    Args:
        runs: the override list of each.
        groups: the names of all config groups.
    """
    examples: dict[tuple[str, ...], list[str]] = {}
    counts: Counter[tuple[str, ...]] = Counter()
    for overrides in runs:
        choices = tuple(text for text in overrides if text.lstrip("+~").partition("=")[0].partition("@")[0] in groups)
        examples.setdefault(choices, overrides)
        counts[choices] += 1
    frequent = [examples[choices] for choices, count in counts.most_common(MOST_CHOICES) if count >= LEAST_RUNS]
    return frequent or list(runs[:1])


def is_same(one: Any, other: Any) -> bool:
    """Whether two nodes of configurations are the same in every respect, interpolations not resolved."""
    if type(one) is not type(other) or _metadata(one) != _metadata(other):
        return False
    if not isinstance(one, Container):
        return bool(one._value() == other._value())
    values, others = one._content, other._content
    if not isinstance(values, (dict, list)):  # none, missing or an interpolation
        return bool(values == others)
    if isinstance(one, DictConfig):
        return list(values) == list(others) and all(is_same(values[key], others[key]) for key in values)
    assert isinstance(one, ListConfig)
    return len(values) == len(others) and all(map(is_same, values, others))


def _metadata(node: Any) -> Mapping[str, Any]:
    return {**vars(node._metadata), "resolver_cache": None}


def _key(arguments: Mapping[str, Any]) -> tuple[Any, Overrides]:
    """What a defaults list depends on, and the overrides as Hydra sorts them: those of mere values do not matter."""
    overrides = Overrides(repo=arguments["repo"], overrides_list=arguments["overrides_list"])
    values = {id(override) for override in overrides.config_overrides}
    choices = tuple(str(each.input_line) for each in arguments["overrides_list"] if id(each) not in values)
    sources = tuple((source.provider, source.full_path()) for source in arguments["repo"].get_sources())
    others = tuple((name, arguments[name]) for name in sorted(arguments) if name not in ("repo", "overrides_list"))
    return (choices, sources, others), overrides


@contextlib.contextmanager
def _record(found: dict[Any, _Learned]) -> Iterator[list[str]]:
    """Within this, note what Hydra's config loader makes; yields the names of the resolvers that were asked for it."""
    asked: list[str] = []
    made: list[tuple[Any, Any]] = []
    create, compose = hydras.create_defaults_list, hydras.ConfigLoaderImpl._compose_config_from_defaults_list

    def watched(name: str, resolver: Any) -> Any:
        def resolve(*arguments: Any, **named: Any) -> Any:
            asked.append(name)
            return resolver(*arguments, **named)

        return resolve

    @contextlib.contextmanager
    def watching(but: str | None = None) -> Iterator[None]:
        before = BaseContainer._resolvers
        BaseContainer._resolvers = {
            name: resolver if name == but else watched(name, resolver) for name, resolver in before.items()
        }
        try:
            yield
        finally:
            BaseContainer._resolvers = before

    def create_defaults_list(**arguments: Any) -> Any:
        key, _ = _key(arguments)
        with watching():
            defaults = create(**arguments)
        made.append((key, defaults))
        return defaults

    def compose_config(loader: Any, defaults: Any, repo: Any) -> Any:
        with watching(but="now"):  # merging looks at it; what it said is forgotten again for what the sweep has seen
            config = compose(loader, defaults, repo)
        for key, whole in made:
            if whole.defaults is defaults:
                found[key] = copy.deepcopy(_Learned(whole, config))
        return config

    with _in_place_of_hydras(create_defaults_list, compose_config):
        yield asked


@contextlib.contextmanager
def _record_parsing(parsed: dict[str, Any]) -> Iterator[None]:
    """Within this, note how overrides are parsed, but for those with functions, which may give something else again."""
    parse_rule = OverridesParser.parse_rule

    def parse(parser: Any, text: str, rule: str) -> Any:
        override = parse_rule(parser, text, rule)
        if rule == "override" and "(" not in text:
            parsed[text] = copy.deepcopy(override)
        return override

    with _parsing_by(parse):
        yield


@contextlib.contextmanager
def _parsing_by(parse: Any) -> Iterator[None]:
    """Have Hydra's parser of overrides call this."""
    before = OverridesParser.parse_rule
    OverridesParser.parse_rule = parse  # type: ignore[method-assign]
    try:
        yield
    finally:
        OverridesParser.parse_rule = before  # type: ignore[method-assign]


@contextlib.contextmanager
def _sources_in_common() -> Iterator[None]:
    """Have copies of a repository of configs share its sources: Hydra copies it, and in it all that the ConfigStore
    has, to set another list of sources."""
    ConfigRepository.__deepcopy__ = lambda repository, _: copy.copy(repository)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del ConfigRepository.__deepcopy__  # type: ignore[attr-defined]


@contextlib.contextmanager
def _in_place_of_hydras(create_defaults_list: Any, compose_config: Any) -> Iterator[None]:
    """Have Hydra's config loader call these."""
    loader = hydras.ConfigLoaderImpl
    before = hydras.create_defaults_list, loader._compose_config_from_defaults_list
    hydras.create_defaults_list, loader._compose_config_from_defaults_list = create_defaults_list, compose_config
    try:
        yield
    finally:
        hydras.create_defaults_list, loader._compose_config_from_defaults_list = before
