"""Which certificate authorities the outgoing side trusts: the machine's, and those of a file beside them.

The machine's store is OpenSSL's, so that `SSL_CERT_FILE` and `SSL_CERT_DIR` name another. Certificates are always checked.
"""

from __future__ import annotations

import os
import ssl
from typing import Final

_NO_STORE: Final = (
    "this machine has no certificate store: install the package ca-certificates, or name one by SSL_CERT_FILE or --ca-file"
)


def client_context(ca_file: str | None) -> ssl.SSLContext:
    """For connections to others. Raises OSError if `ca_file` cannot be read. Blocks on the disk for some milliseconds."""
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context


def why_untrusted(error: BaseException) -> str:
    """What a failed check of a certificate means for whoever runs the machine; empty for any other failure."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLCertVerificationError):
        seen = seen.__cause__ or seen.__context__
    if seen is None:
        return ""
    paths = ssl.get_default_verify_paths()
    stores = [path for path in (paths.cafile, paths.capath) if path is not None and os.path.exists(path)]
    if not any(os.path.isfile(path) or os.listdir(path) for path in stores):
        return _NO_STORE
    if seen.verify_code in _UNKNOWN_AUTHORITY:
        return f"{seen.verify_message}; trust its authority by SSL_CERT_FILE or --ca-file"
    return seen.verify_message


_UNKNOWN_AUTHORITY: Final = (18, 19, 20, 21)  # self-signed, self-signed in the chain, no local issuer, cannot be verified
