"""The kinds of bindings that an app may have, besides its own objects. A new one is a module here and a line in `KINDS`.

A kind reads its part of the configuration (in the node) and gives worker code what it finds in `env` (in each host). It
knows no gateway and no link. `host` is imported when a kind is opened, as a gateway's process has no use for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from roost.bindings.assets import AssetsBinding
from roost.bindings.kv_namespaces import KvNamespaces
from roost.bindings.rate_limits import RateLimits
from roost.bindings.services import Services
from roost.bindings.version_metadata import VersionMetadata

if TYPE_CHECKING:
    from roost.bindings.kind import Kind

KINDS: Final[list[Kind]] = [Services, KvNamespaces, RateLimits, VersionMetadata, AssetsBinding]
"""All there are, in the order in which they are opened."""
