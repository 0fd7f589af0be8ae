"""Puts the plain SQL schema into the package, from the same sources as the extension."""

import hashlib
import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent.parent


class AssembleSchema(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        target = Path(self.root, "src", "durable_client", "durable.sql")
        sources = ROOT / "sql"
        if not sources.is_dir():
            if target.exists():  # an unpacked sdist carries the assembled file
                return
            raise FileNotFoundError(f"{sources} is missing: build the client from a checkout of the whole project")
        schema_version = re.search(r"^default_version = '(.*)'", (ROOT / "durable.control").read_text(), re.MULTILINE)
        assert schema_version is not None
        parts = [line for line in (sources / "INSTALL_ORDER").read_text().splitlines() if not line.startswith("#")]
        header, body = (
            (sources / "plain_header.sql").read_text(),
            "".join((sources / part).read_text() for part in parts),
        )
        digest = hashlib.sha256(body.encode()).hexdigest()[:16]
        target.write_text((header + body).replace("@VERSION@", schema_version[1]).replace("@BUILD@", digest))
