"""What a slot can be given of its node, one kind per file.

A new kind is a class like those here: it derives from :class:`Kind`, names its options, and divides a
:class:`~clusterduck.agent.node.Node` into one :class:`Grant` per slot. A package registers its own kinds by entry
points::

    [project.entry-points."clusterduck.resources"]
    scratch = "my_package.scratch:Scratch"

after which ``resources_config: {scratch: {size_gb: 10}}`` works. The entry point's name is the kind's name.
"""

from clusterduck.agent.resources.kind import Grant, Kind

__all__ = ["Grant", "Kind"]
