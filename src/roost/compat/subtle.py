"""`crypto.subtle`: digests, signatures, encryption and derived keys.

Digests, HMAC, PBKDF2 and HKDF come from the standard library; AES-GCM, ECDSA and Ed25519 from the package `cryptography`
(`pip install 'roost[crypto]'`). What takes long runs in a thread. Source: Web Cryptography API; platform documentation,
"Web Crypto".
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
from typing import TYPE_CHECKING, Any, Final

from roost.api.buffers import ArrayBuffer
from roost.api.promises import eager
from roost.errors import JsTypeError
from roost.js_values import JsDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
from roost.compat.crypto_keys import (
    CURVES,
    HASHES,
    CryptoKey,
    aes_key,
    algorithm_of,
    bytes_of,
    cryptography_of,
    curve_of,
    described,
    exported,
    fail,
    hash_of,
    hmac_key,
    loaded,
    material_of,
    secret_bytes,
    secret_exported,
)

OFF_LOOP_BYTES: Final = 64 * 1024


_OFF_LOOP_ROUNDS: Final = 1000  # of PBKDF2


async def _off_loop(size: int, function: Callable[[], Any]) -> Any:
    """Large inputs in a thread: others go on meanwhile."""
    return function() if size <= OFF_LOOP_BYTES else await asyncio.to_thread(function)


class SubtleCrypto:
    """`crypto.subtle`. Every method returns an awaitable; errors are JsExceptions with the standard's names."""

    @eager
    async def digest(self, algorithm: Any, data: Any) -> ArrayBuffer:
        """SHA-1, SHA-256, SHA-384, SHA-512, MD5."""
        name = HASHES.get(algorithm_of(algorithm, {})["name"])
        if name is None:
            fail("NotSupportedError", f"crypto.subtle.digest: use one of {', '.join(HASHES)}.")
        raw = bytes_of(data, "data")
        return ArrayBuffer(await _off_loop(len(raw), lambda: hashlib.new(name, raw, usedforsecurity=False).digest()))

    # keys

    @eager
    async def generateKey(self, algorithm: Any, extractable: bool, usages: Iterable[str], **more: Any) -> Any:
        """A CryptoKey; for ECDSA and Ed25519 an object with `publicKey` and `privateKey`."""
        chosen = algorithm_of(algorithm, more)
        name, may = chosen["name"], list(usages)
        if name == "HMAC":
            hash_name = hash_of(chosen)
            size = int(chosen.get("length") or hashlib.new(HASHES[hash_name]).block_size * 8) // 8
            return hmac_key(secrets.token_bytes(size), hash_name, extractable, may)
        if name == "AES-GCM":
            return aes_key(secrets.token_bytes(int(chosen.get("length") or 0) // 8), extractable, may)
        if name in ("ECDSA", "Ed25519"):
            asymmetric = cryptography_of().asymmetric
            if name == "Ed25519":
                private = asymmetric.ed25519.Ed25519PrivateKey.generate()
            else:
                private = asymmetric.ec.generate_private_key(curve_of(asymmetric.ec, chosen))
            kind = described(chosen)
            return JsDict(
                publicKey=CryptoKey("public", kind, private.public_key(), True, [u for u in may if u == "verify"]),
                privateKey=CryptoKey("private", kind, private, extractable, [u for u in may if u == "sign"]),
            )
        fail("NotSupportedError", f"crypto.subtle.generateKey: {name} has no keys that can be made.")

    generate_key = generateKey

    @eager
    async def importKey(
        self, form: str, key: Any, algorithm: Any, extractable: bool, usages: Iterable[str], **more: Any
    ) -> CryptoKey:
        """`form`: "raw", "jwk", "spki" or "pkcs8"."""
        chosen = algorithm_of(algorithm, more)
        name, may = chosen["name"], list(usages)
        if name in ("HMAC", "AES-GCM", "PBKDF2", "HKDF"):
            raw = secret_bytes(form, key)
            if name == "HMAC":
                return hmac_key(raw, hash_of(chosen), extractable, may)
            if name == "AES-GCM":
                return aes_key(raw, extractable, may)
            if extractable:
                fail("SyntaxError", f"crypto.subtle.importKey: a key for {name} cannot be extractable.")
            return CryptoKey("secret", {"name": name}, raw, False, may)
        if name not in ("ECDSA", "Ed25519"):
            fail("NotSupportedError", f"crypto.subtle.importKey: {name} has no keys.")
        material = loaded(form, key, chosen)
        kind = "private" if hasattr(material, "sign") else "public"
        return CryptoKey(kind, described(chosen), material, extractable, may)

    import_key = importKey

    @eager
    async def exportKey(self, form: str, key: CryptoKey) -> Any:
        """Bytes, or an object for "jwk"."""
        if not key.extractable:
            fail("InvalidAccessError", "crypto.subtle.exportKey: the key is not extractable.")
        if key.type == "secret":
            return secret_exported(form, key)
        return exported(form, key)

    export_key = exportKey

    # signatures

    @eager
    async def sign(self, algorithm: Any, key: CryptoKey, data: Any) -> ArrayBuffer:
        chosen, raw = _use(algorithm, key, "sign"), bytes_of(data, "data")
        if key.algorithm["name"] == "HMAC":
            return ArrayBuffer(await _off_loop(len(raw), lambda: _hmac_of(key, raw)))
        if key.type != "private":
            fail("InvalidAccessError", "crypto.subtle.sign: the key is not private.")
        return ArrayBuffer(await _off_loop(len(raw), lambda: _signed(chosen, key, raw)))

    @eager
    async def verify(self, algorithm: Any, key: CryptoKey, signature: Any, data: Any) -> bool:
        chosen, raw, given = _use(algorithm, key, "verify"), bytes_of(data, "data"), bytes_of(signature, "signature")
        if key.algorithm["name"] == "HMAC":
            return hmac.compare_digest(await _off_loop(len(raw), lambda: _hmac_of(key, raw)), given)
        if key.type != "public":
            fail("InvalidAccessError", "crypto.subtle.verify: the key is not public.")
        right: bool = await _off_loop(len(raw), lambda: _verified(chosen, key, given, raw))
        return right

    # encryption

    @eager
    async def encrypt(self, algorithm: Any, key: CryptoKey, data: Any, **more: Any) -> ArrayBuffer:
        """AES-GCM: the tag (`tagLength`, 128 bits) is behind the ciphertext."""
        chosen, raw = _use(algorithm, key, "encrypt", more), bytes_of(data, "data")
        return ArrayBuffer(await _off_loop(len(raw), lambda: _encrypted(chosen, key, raw)))

    @eager
    async def decrypt(self, algorithm: Any, key: CryptoKey, data: Any, **more: Any) -> ArrayBuffer:
        """Raises OperationError if it was changed, or the key is another."""
        chosen, raw = _use(algorithm, key, "decrypt", more), bytes_of(data, "data")
        return ArrayBuffer(await _off_loop(len(raw), lambda: _decrypted(chosen, key, raw)))

    # derived keys

    @eager
    async def deriveBits(self, algorithm: Any, key: CryptoKey, length: int, **more: Any) -> ArrayBuffer:
        """PBKDF2 (`salt`, `iterations`, `hash`) and HKDF (`salt`, `info`, `hash`); `length` is in bits."""
        if "deriveBits" not in key.usages:
            fail("InvalidAccessError", "crypto.subtle.deriveBits: the key is not for deriveBits.")
        return ArrayBuffer(await _derived(algorithm_of(algorithm, more), key, length))

    derive_bits = deriveBits

    @eager
    async def deriveKey(
        self, algorithm: Any, key: CryptoKey, derived: Any, extractable: bool, usages: Iterable[str]
    ) -> CryptoKey:
        if "deriveKey" not in key.usages:
            fail("InvalidAccessError", "crypto.subtle.deriveKey: the key is not for deriveKey.")
        wanted = algorithm_of(derived, {})
        if wanted["name"] == "AES-GCM":
            raw = await _derived(algorithm_of(algorithm, {}), key, int(wanted.get("length") or 0))
            return aes_key(raw, extractable, list(usages))
        if wanted["name"] == "HMAC":
            name = hash_of(wanted)
            bits = int(wanted.get("length") or hashlib.new(HASHES[name]).block_size * 8)
            return hmac_key(await _derived(algorithm_of(algorithm, {}), key, bits), name, extractable, list(usages))
        fail("NotSupportedError", "crypto.subtle.deriveKey: keys of AES-GCM and HMAC can be derived.")

    derive_key = deriveKey

    def timingSafeEqual(self, one: Any, other: Any) -> bool:
        """The platform's own: whether two buffers of the same length are equal, in a time that does not tell where."""
        first, second = bytes_of(one, "a"), bytes_of(other, "b")
        if len(first) != len(second):
            raise JsTypeError("Input buffers must have the same byte length.")
        return hmac.compare_digest(first, second)

    timing_safe_equal = timingSafeEqual


def _use(algorithm: Any, key: CryptoKey, usage: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """The algorithm of an operation, which must be the key's."""
    chosen = algorithm_of(algorithm, more or {})
    if not isinstance(key, CryptoKey):
        raise JsTypeError(f"crypto.subtle.{usage} needs a CryptoKey, not {type(key).__name__}; importKey makes one.")
    if key.algorithm["name"] != chosen["name"]:
        fail("InvalidAccessError", f"crypto.subtle.{usage}: the key is for {key.algorithm['name']}, not {chosen['name']}.")
    if usage not in key.usages:
        fail("InvalidAccessError", f"crypto.subtle.{usage}: the key's usages are {', '.join(key.usages) or 'none'}.")
    return chosen


def _hmac_of(key: CryptoKey, data: bytes) -> bytes:
    return hmac.digest(material_of(key), data, HASHES[key.algorithm["hash"]["name"]])


def _cipher(chosen: dict[str, Any], key: CryptoKey, tag: bytes | None) -> Any:
    iv = bytes_of(chosen.get("iv"), "iv")
    if not iv:
        fail("OperationError", "crypto.subtle: AES-GCM needs an iv that is not empty.")
    ciphers = cryptography_of().ciphers
    mode = ciphers.modes.GCM(iv, tag, min_tag_length=4 if tag is None else len(tag))
    cipher = ciphers.Cipher(ciphers.algorithms.AES(material_of(key)), mode)
    made = cipher.encryptor() if tag is None else cipher.decryptor()
    if chosen.get("additionalData") is not None:
        made.authenticate_additional_data(bytes_of(chosen["additionalData"], "additionalData"))
    return made


def _tag_size(chosen: dict[str, Any]) -> int:
    bits = chosen.get("tagLength", 128)
    if bits not in (32, 64, 96, 104, 112, 120, 128):
        fail("OperationError", f"crypto.subtle: a tagLength of {bits} is not one of AES-GCM's.")
    return int(bits) // 8


def _encrypted(chosen: dict[str, Any], key: CryptoKey, data: bytes) -> bytes:
    size = _tag_size(chosen)
    cipher = _cipher(chosen, key, None)
    text: bytes = cipher.update(data) + cipher.finalize()
    tag: bytes = cipher.tag[:size]
    return text + tag


def _decrypted(chosen: dict[str, Any], key: CryptoKey, data: bytes) -> bytes:
    size = _tag_size(chosen)
    if len(data) < size:
        fail("OperationError", "crypto.subtle.decrypt: the data is shorter than its tag.")
    cipher = _cipher(chosen, key, data[-size:])
    from cryptography.exceptions import InvalidTag

    try:
        text: bytes = cipher.update(data[:-size]) + cipher.finalize()
    except InvalidTag:
        fail("OperationError", "Decryption failed. This could be due to a ciphertext authentication failure.")
    return text


async def _derived(chosen: dict[str, Any], key: CryptoKey, length: int) -> bytes:
    if key.algorithm["name"] != chosen["name"]:
        fail("InvalidAccessError", f"crypto.subtle: the key is for {key.algorithm['name']}, not {chosen['name']}.")
    if not length or length % 8 or length < 0:
        fail("OperationError", "crypto.subtle: the length of derived bits must be a multiple of 8.")
    size, name = length // 8, HASHES[hash_of(chosen)]
    salt = bytes_of(chosen.get("salt"), "salt")
    if chosen["name"] == "PBKDF2":
        rounds = int(chosen.get("iterations") or 0)
        if not 1 <= rounds <= 100_000:
            fail("NotSupportedError", f"Pbkdf2 failed: iterations must be 1 to 100000, not {rounds}.")
        work = rounds if rounds > _OFF_LOOP_ROUNDS else 0
        made: bytes = await _off_loop(
            work and OFF_LOOP_BYTES + 1, lambda: hashlib.pbkdf2_hmac(name, material_of(key), salt, rounds, size)
        )
        return made
    if chosen["name"] == "HKDF":
        return _hkdf(name, material_of(key), salt, bytes_of(chosen.get("info"), "info"), size)
    fail("NotSupportedError", f"crypto.subtle: bits are derived by PBKDF2 and HKDF, not {chosen['name']}.")


def _hkdf(name: str, material: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869."""
    width = hashlib.new(name).digest_size
    if size > 255 * width:
        fail("OperationError", f"crypto.subtle: HKDF gives at most {255 * width * 8} bits.")
    secret = hmac.digest(salt or bytes(width), material, name)
    block, made = b"", b""
    for number in range(1, math.ceil(size / width) + 1):
        block = hmac.digest(secret, block + info + bytes([number]), name)
        made += block
    return made[:size]


def _signed(chosen: dict[str, Any], key: CryptoKey, data: bytes) -> bytes:
    """ECDSA as r and s of the curve's size, one behind the other (IEEE P1363), as the standard has it."""
    if key.algorithm["name"] == "Ed25519":
        signature: bytes = material_of(key).sign(data)
        return signature
    primitives = cryptography_of()
    asymmetric, size = primitives.asymmetric, CURVES[key.algorithm["namedCurve"]][1]
    der = material_of(key).sign(data, asymmetric.ec.ECDSA(_hash_object(primitives, chosen)))
    r, s = asymmetric.utils.decode_dss_signature(der)
    return bytes(r.to_bytes(size, "big") + s.to_bytes(size, "big"))


def _verified(chosen: dict[str, Any], key: CryptoKey, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    primitives = cryptography_of()
    try:
        if key.algorithm["name"] == "Ed25519":
            material_of(key).verify(signature, data)
            return True
        size = CURVES[key.algorithm["namedCurve"]][1]
        if len(signature) != 2 * size:
            return False
        r, s = (int.from_bytes(part, "big") for part in (signature[:size], signature[size:]))
        der = primitives.asymmetric.utils.encode_dss_signature(r, s)
        material_of(key).verify(der, data, primitives.asymmetric.ec.ECDSA(_hash_object(primitives, chosen)))
    except InvalidSignature:
        return False
    return True


def _hash_object(primitives: Any, chosen: dict[str, Any]) -> Any:
    return getattr(primitives.hashes, hash_of(chosen).replace("-", ""))()
