"""Build hook: editable installs get a git-ignored folder of links, `.editable/forebay/X -> X/`.

Hatch refuses to rename folders for an editable install, and the top folders must keep their names;
links give the import name `forebay.X` without a second copy of anything.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EditableLinks(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            return
        for source, target in self.build_config.sources.items():
            link = Path(self.root, ".editable", target.rstrip("/"))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(Path(self.root, source), target_is_directory=True)
