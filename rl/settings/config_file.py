"""Options in a YAML file: reads the file that --config names, and makes the config.yaml by which a run can be repeated.

A value means what it means on the command line: its text is parsed by tyro's constructor of the option's type, so that 1e-6, which is
text to YAML, is a number here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from rewards.errors import UserError
from rl.settings.checks import without_effect
from rl.settings.config import OF_ALGORITHM, RunConfig
from rl.settings.declare import require_possible_value

CONFIG_FILE = "config.yaml"  # in the run's folder
NOT_REPEATED = ("run_dir", "resume", "push_to_hub")  # options of one run's folder, which a repetition does not share
STANDARD_TAG = "tag:yaml.org,2002:"
SPOKEN = {"INT": "a whole number", "FLOAT": "a number", "STR": "text", "PATH": "a path"}  # of tyro's words for types
SPOKEN |= {"True": "true", "False": "false", "None": "null"}  # YAML's words for values


def read_spec(name: str, hint: Any) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads an option of this type from the command line."""
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(hint, set()))
    assert isinstance(spec, PrimitiveConstructorSpec), (name, spec)
    return spec


def specs_of(options: type) -> dict[str, PrimitiveConstructorSpec[Any]]:
    """How tyro reads each field of a class of options."""
    return {name: read_spec(name, hint) for name, hint in get_type_hints(options, include_extras=True).items()}


SPECS = specs_of(RunConfig)


def read_options(path: Path) -> dict[str, Any]:
    """The options that a YAML file gives, by their names as fields of RunConfig. Rules between several options are not checked yet."""
    found: dict[str, Any] = {}
    for key, node in entries(path):
        name, where = key.value.replace("-", "_"), f"config {str(path)!r}, line {key.start_mark.line + 1}"
        if name not in SPECS:
            raise UserError(f"{where}: {key.value!r} is not an option; {nearest(name)}")
        if name in found:
            raise UserError(f"{where}: {name} is given a second time; remove one of the two")
        found[name] = option_value(name, node, where)
        try:
            require_possible_value(name, found[name], RunConfig)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return found


def entries(path: Path) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """The keys and values of the file's mapping, with their places in the file."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise UserError(f"config is {str(path)!r}: it cannot be read ({why}); give a YAML file of options") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = "" if mark is None else f", line {mark.line + 1}"
        advice = "replace the tab by spaces" if r"'\t'" in problem else "write one 'option: value' in each line"
        raise UserError(f"config {str(path)!r}{line}: it is not YAML ({problem}); {advice}") from None
    if not isinstance(root, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in root.value):
        raise UserError(f"config is {str(path)!r}: it must be a mapping; write one 'option: value' in each line")
    return root.value


def option_value(name: str, node: yaml.Node, where: str) -> Any:
    """The value of an option, of its declared type. Raises UserError, with `where` in front, for another one."""
    spec = SPECS[name]
    many = spec.nargs == "*"
    nodes: list[yaml.Node] = node.value if many and isinstance(node, yaml.SequenceNode) else [node]
    try:
        texts = [argument(each) for each in nodes]
        if spec.choices is not None and not set(texts) <= set(spec.choices):
            raise ValueError(texts)
        value = spec.instance_from_str(texts)
        values = value if isinstance(value, tuple) else (value,)
        # Any word is text to tyro; an unquoted true or null is none to YAML, and was probably not meant as text.
        if any(is_word(each) and isinstance(v, str | Path) for each, v in zip(nodes, values)):
            raise ValueError(texts)
    except ValueError:
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        shown = repr(node.value) if isinstance(node, yaml.ScalarNode) else kind
        raise UserError(f"{where}: {name} is {shown}: it must be {possible(spec)}") from None
    return value


def python_value(name: str, value: Any, specs: Mapping[str, PrimitiveConstructorSpec[Any]] = SPECS) -> Any:
    """A value that a Python program gives to an option, as the command line would have it. Raises UserError for another type."""
    spec, many = specs[name], specs[name].nargs == "*"
    values = list(value) if many and isinstance(value, list | tuple) else [value]
    try:
        return spec.instance_from_str([str(each) for each in values])
    except ValueError:
        raise UserError(f"{name} is {value!r}: it must be {possible(spec)}") from None


def argument(node: yaml.Node) -> str:
    """What the command line would have in place of a value in the file. Raises ValueError for a list, a mapping or a tag of one's own."""
    if not isinstance(node, yaml.ScalarNode) or not node.tag.startswith(STANDARD_TAG):
        raise ValueError(node)
    return str(yaml.SafeLoader("").construct_object(node)) if is_word(node) else node.value


def is_word(node: yaml.Node) -> bool:
    """Whether YAML reads the node as true, false or null, however they are written."""
    return node.tag in (STANDARD_TAG + "bool", STANDARD_TAG + "null")


def possible(spec: PrimitiveConstructorSpec[Any]) -> str:
    """The possible values of an option, in words."""
    if spec.nargs == "*":
        return "a value or a list of values; texts such as true or null need quotes"
    words = [word for part in spec.metavar.split("|") for word in part.strip("{}").split(",")]
    return " or ".join(SPOKEN.get(word, word) for word in sorted(words, key=lambda word: word == "None"))


def nearest(name: str, known: Iterable[str] = SPECS) -> str:
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "--help lists the options"


def repeating(settings: RunConfig) -> str:
    """The text of config.yaml: every option that has an effect, so that the run is repeated when a default has changed too."""
    idle = {name for names, _ in without_effect(settings) for name in names}
    written, algorithm = settings.as_json(), settings.chosen_algorithm()
    filled = {name: getattr(algorithm, name) for name in OF_ALGORITHM if written[name] is None}
    if algorithm.value_rule is not None:
        filled["value"] = algorithm.value_rule.source
    kept = {name: value for name, value in {**written, **filled}.items() if name not in {*idle, *NOT_REPEATED}}
    head = f"# Repeats the run in {settings.run_dir}: give this file to --config, and a new folder to --run-dir.\n"
    return head + yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
