"""``tmpdir``: each run has a temporary folder to itself, which is removed after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from clusterduck.agent.node import Node
from clusterduck.agent.resources.kind import Grant, Kind
from clusterduck.agent.resources.options import read_variables
from clusterduck.errors import ConfigError

#: Where these are unset, Python's and the C library's default (/tmp) is meant.
WITH_DEFAULT = ("TMPDIR", "TMP", "TEMP")


class Tmpdir(Kind):
    """Each of ``vars`` (default TMPDIR) names a sub-folder of what it named before; the agent makes and removes it."""

    option_names = ("vars",)

    def __init__(self, options: Mapping[str, object]) -> None:
        self.variables = read_variables("resources_config.tmpdir.vars", options.get("vars"), ("TMPDIR",))

    def divide(self, node: Node, slots: int, so_far: Sequence[Grant]) -> list[Grant]:
        """Give every slot the variables.

        Raises:
            ConfigError: if one is not set on this node and has no default.
        """
        for variable in self.variables:
            if not node.environ.get(variable) and variable not in WITH_DEFAULT:
                raise ConfigError(
                    f"resources_config.tmpdir.vars names {variable}, which is not set on {node.host}: "
                    f"set it in the job (setup), or take it off the list."
                )
        return [Grant(tmpdir_vars=self.variables, note=f"a folder per run in {', '.join(self.variables)}")] * slots
