"""`workers.rpc`: where the SDK has its conversions, which some sources import from there."""

from roost.api.entrypoint import python_from_rpc, python_to_rpc
from roost.api.rpc_stubs import RpcStub

_RpcStubWrapper = RpcStub

__all__ = ["_RpcStubWrapper", "python_from_rpc", "python_to_rpc"]
