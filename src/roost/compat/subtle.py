"""`crypto.subtle`: digests, signatures, encryption and derived keys.

Digests, HMAC, PBKDF2 and HKDF come from the standard library; AES-GCM, ECDSA and Ed25519 from the package `cryptography`
(`pip install 'roost[crypto]'`). What takes long runs in a thread. Source: Web Cryptography API; platform documentation,
"Web Crypto".
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import math
import secrets
from typing import TYPE_CHECKING, Any, Final, NoReturn

from roost.api.buffers import ArrayBuffer
from roost.api.promises import eager
from roost.errors import JsException, JsTypeError
from roost.values import JsDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

OFF_LOOP_BYTES: Final = 64 * 1024
_OFF_LOOP_ROUNDS: Final = 1000  # of PBKDF2

_HASHES: Final = {"SHA-1": "sha1", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512", "MD5": "md5"}
_CURVES: Final = {"P-256": ("SECP256R1", 32), "P-384": ("SECP384R1", 48), "P-521": ("SECP521R1", 66)}
_USAGES: Final = ("encrypt", "decrypt", "sign", "verify", "deriveKey", "deriveBits", "wrapKey", "unwrapKey")


class CryptoKey:
    """A key, with what it may be used for. Its material is not readable; `exportKey` gives it if it is `extractable`."""

    def __init__(
        self, kind: str, algorithm: dict[str, Any], material: Any, extractable: bool, usages: Iterable[str]
    ) -> None:
        self.type = kind
        self.algorithm = JsDict(algorithm)
        self.extractable = extractable
        self.usages = [usage for usage in _USAGES if usage in usages]
        self._material = material

    def __repr__(self) -> str:
        return f"<CryptoKey {self.type} {self.algorithm['name']}>"


def _fail(name: str, message: str) -> NoReturn:
    raise JsException(message, name)


def _algorithm(given: Any, extra: dict[str, Any]) -> dict[str, Any]:
    """An algorithm, as a name or an object, with its name in its usual spelling."""
    chosen = {"name": given} if isinstance(given, str) else dict(given or {})
    chosen.update(extra)
    name = chosen.get("name")
    if not isinstance(name, str):
        raise JsTypeError("An algorithm needs a name, such as 'SHA-256' or {'name': 'AES-GCM', 'iv': iv}.")
    known = (*_HASHES, "HMAC", "AES-GCM", "ECDSA", "Ed25519", "PBKDF2", "HKDF")
    chosen["name"] = next((each for each in known if each.lower() == name.lower()), name)
    if chosen["name"] not in known:
        _fail("NotSupportedError", f"crypto.subtle: {name} is not supported by Roost; it has {', '.join(known)}.")
    return chosen


def _hash_of(chosen: dict[str, Any]) -> str:
    given = chosen.get("hash")
    name = given if isinstance(given, str) else (given or {}).get("name", "")
    found = next((each for each in _HASHES if each.lower() == str(name).lower()), None)
    if found is None:
        _fail("NotSupportedError", f"crypto.subtle: {name or 'no hash'} is not supported; use one of {', '.join(_HASHES)}.")
    return found


def _bytes(data: Any, what: str) -> bytes:
    if isinstance(data, str) or not isinstance(data, bytes | bytearray | memoryview):
        raise JsTypeError(f"crypto.subtle: {what} must be bytes, not {type(data).__name__}.")
    return bytes(data)


def _cryptography() -> ModuleType:
    try:
        from cryptography.hazmat import primitives
        from cryptography.hazmat.primitives import ciphers, hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
    except ImportError:
        _fail(
            "NotSupportedError",
            "crypto.subtle: AES-GCM, ECDSA and Ed25519 need the package cryptography: pip install 'roost[crypto]'.",
        )
    assert all((ciphers, hashes, serialization, ec, ed25519, utils))  # loaded: they are attributes of the package now
    return primitives


async def _off_loop(size: int, function: Callable[[], Any]) -> Any:
    """Large inputs in a thread: others go on meanwhile."""
    return function() if size <= OFF_LOOP_BYTES else await asyncio.to_thread(function)


class SubtleCrypto:
    """`crypto.subtle`. Every method returns an awaitable; errors are JsExceptions with the standard's names."""

    @eager
    async def digest(self, algorithm: Any, data: Any) -> ArrayBuffer:
        """SHA-1, SHA-256, SHA-384, SHA-512, MD5."""
        name = _HASHES.get(_algorithm(algorithm, {})["name"])
        if name is None:
            _fail("NotSupportedError", f"crypto.subtle.digest: use one of {', '.join(_HASHES)}.")
        raw = _bytes(data, "data")
        return ArrayBuffer(await _off_loop(len(raw), lambda: hashlib.new(name, raw, usedforsecurity=False).digest()))

    # keys

    @eager
    async def generateKey(self, algorithm: Any, extractable: bool, usages: Iterable[str], **more: Any) -> Any:
        """A CryptoKey; for ECDSA and Ed25519 an object with `publicKey` and `privateKey`."""
        chosen = _algorithm(algorithm, more)
        name, may = chosen["name"], list(usages)
        if name == "HMAC":
            hash_name = _hash_of(chosen)
            size = int(chosen.get("length") or hashlib.new(_HASHES[hash_name]).block_size * 8) // 8
            return _hmac_key(secrets.token_bytes(size), hash_name, extractable, may)
        if name == "AES-GCM":
            return _aes_key(secrets.token_bytes(int(chosen.get("length") or 0) // 8), extractable, may)
        if name in ("ECDSA", "Ed25519"):
            asymmetric = _cryptography().asymmetric
            if name == "Ed25519":
                private = asymmetric.ed25519.Ed25519PrivateKey.generate()
            else:
                private = asymmetric.ec.generate_private_key(_curve(asymmetric.ec, chosen))
            described = _described(chosen)
            return JsDict(
                publicKey=CryptoKey("public", described, private.public_key(), True, [u for u in may if u == "verify"]),
                privateKey=CryptoKey("private", described, private, extractable, [u for u in may if u == "sign"]),
            )
        _fail("NotSupportedError", f"crypto.subtle.generateKey: {name} has no keys that can be made.")

    generate_key = generateKey

    @eager
    async def importKey(
        self, form: str, key: Any, algorithm: Any, extractable: bool, usages: Iterable[str], **more: Any
    ) -> CryptoKey:
        """`form`: "raw", "jwk", "spki" or "pkcs8"."""
        chosen = _algorithm(algorithm, more)
        name, may = chosen["name"], list(usages)
        if name in ("HMAC", "AES-GCM", "PBKDF2", "HKDF"):
            raw = _secret_bytes(form, key)
            if name == "HMAC":
                return _hmac_key(raw, _hash_of(chosen), extractable, may)
            if name == "AES-GCM":
                return _aes_key(raw, extractable, may)
            if extractable:
                _fail("SyntaxError", f"crypto.subtle.importKey: a key for {name} cannot be extractable.")
            return CryptoKey("secret", {"name": name}, raw, False, may)
        if name not in ("ECDSA", "Ed25519"):
            _fail("NotSupportedError", f"crypto.subtle.importKey: {name} has no keys.")
        material = _loaded(form, key, chosen)
        kind = "private" if hasattr(material, "sign") else "public"
        return CryptoKey(kind, _described(chosen), material, extractable, may)

    import_key = importKey

    @eager
    async def exportKey(self, form: str, key: CryptoKey) -> Any:
        """Bytes, or an object for "jwk"."""
        if not key.extractable:
            _fail("InvalidAccessError", "crypto.subtle.exportKey: the key is not extractable.")
        if key.type == "secret":
            return _secret_exported(form, key)
        return _exported(form, key)

    export_key = exportKey

    # signatures

    @eager
    async def sign(self, algorithm: Any, key: CryptoKey, data: Any) -> ArrayBuffer:
        chosen, raw = _use(algorithm, key, "sign"), _bytes(data, "data")
        if key.algorithm["name"] == "HMAC":
            return ArrayBuffer(await _off_loop(len(raw), lambda: _hmac_of(key, raw)))
        if key.type != "private":
            _fail("InvalidAccessError", "crypto.subtle.sign: the key is not private.")
        return ArrayBuffer(await _off_loop(len(raw), lambda: _signed(chosen, key, raw)))

    @eager
    async def verify(self, algorithm: Any, key: CryptoKey, signature: Any, data: Any) -> bool:
        chosen, raw, given = _use(algorithm, key, "verify"), _bytes(data, "data"), _bytes(signature, "signature")
        if key.algorithm["name"] == "HMAC":
            return hmac.compare_digest(await _off_loop(len(raw), lambda: _hmac_of(key, raw)), given)
        if key.type != "public":
            _fail("InvalidAccessError", "crypto.subtle.verify: the key is not public.")
        right: bool = await _off_loop(len(raw), lambda: _verified(chosen, key, given, raw))
        return right

    # encryption

    @eager
    async def encrypt(self, algorithm: Any, key: CryptoKey, data: Any, **more: Any) -> ArrayBuffer:
        """AES-GCM: the tag (`tagLength`, 128 bits) is behind the ciphertext."""
        chosen, raw = _use(algorithm, key, "encrypt", more), _bytes(data, "data")
        return ArrayBuffer(await _off_loop(len(raw), lambda: _encrypted(chosen, key, raw)))

    @eager
    async def decrypt(self, algorithm: Any, key: CryptoKey, data: Any, **more: Any) -> ArrayBuffer:
        """Raises OperationError if it was changed, or the key is another."""
        chosen, raw = _use(algorithm, key, "decrypt", more), _bytes(data, "data")
        return ArrayBuffer(await _off_loop(len(raw), lambda: _decrypted(chosen, key, raw)))

    # derived keys

    @eager
    async def deriveBits(self, algorithm: Any, key: CryptoKey, length: int, **more: Any) -> ArrayBuffer:
        """PBKDF2 (`salt`, `iterations`, `hash`) and HKDF (`salt`, `info`, `hash`); `length` is in bits."""
        if "deriveBits" not in key.usages:
            _fail("InvalidAccessError", "crypto.subtle.deriveBits: the key is not for deriveBits.")
        return ArrayBuffer(await _derived(_algorithm(algorithm, more), key, length))

    derive_bits = deriveBits

    @eager
    async def deriveKey(
        self, algorithm: Any, key: CryptoKey, derived: Any, extractable: bool, usages: Iterable[str]
    ) -> CryptoKey:
        if "deriveKey" not in key.usages:
            _fail("InvalidAccessError", "crypto.subtle.deriveKey: the key is not for deriveKey.")
        wanted = _algorithm(derived, {})
        if wanted["name"] == "AES-GCM":
            raw = await _derived(_algorithm(algorithm, {}), key, int(wanted.get("length") or 0))
            return _aes_key(raw, extractable, list(usages))
        if wanted["name"] == "HMAC":
            name = _hash_of(wanted)
            bits = int(wanted.get("length") or hashlib.new(_HASHES[name]).block_size * 8)
            return _hmac_key(await _derived(_algorithm(algorithm, {}), key, bits), name, extractable, list(usages))
        _fail("NotSupportedError", "crypto.subtle.deriveKey: keys of AES-GCM and HMAC can be derived.")

    derive_key = deriveKey

    def timingSafeEqual(self, one: Any, other: Any) -> bool:
        """The platform's own: whether two buffers of the same length are equal, in a time that does not tell where."""
        first, second = _bytes(one, "a"), _bytes(other, "b")
        if len(first) != len(second):
            raise JsTypeError("Input buffers must have the same byte length.")
        return hmac.compare_digest(first, second)

    timing_safe_equal = timingSafeEqual


def _use(algorithm: Any, key: CryptoKey, usage: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """The algorithm of an operation, which must be the key's."""
    chosen = _algorithm(algorithm, more or {})
    if not isinstance(key, CryptoKey):
        raise JsTypeError(f"crypto.subtle.{usage} needs a CryptoKey, not {type(key).__name__}; importKey makes one.")
    if key.algorithm["name"] != chosen["name"]:
        _fail("InvalidAccessError", f"crypto.subtle.{usage}: the key is for {key.algorithm['name']}, not {chosen['name']}.")
    if usage not in key.usages:
        _fail("InvalidAccessError", f"crypto.subtle.{usage}: the key's usages are {', '.join(key.usages) or 'none'}.")
    return chosen


# secret keys


def _secret_bytes(form: str, key: Any) -> bytes:
    if form == "raw":
        return _bytes(key, "a raw key")
    if form == "jwk":
        if key.get("kty") != "oct" or not isinstance(key.get("k"), str):
            _fail("DataError", "crypto.subtle.importKey: a secret key as jwk has kty 'oct' and k.")
        return _from_base64(key["k"])
    _fail("NotSupportedError", f"crypto.subtle.importKey: a secret key has the formats raw and jwk, not {form}.")


def _secret_exported(form: str, key: CryptoKey) -> Any:
    if form == "raw":
        return ArrayBuffer(key._material)
    if form != "jwk":
        _fail("NotSupportedError", f"crypto.subtle.exportKey: a secret key has the formats raw and jwk, not {form}.")
    if key.algorithm["name"] == "AES-GCM":
        alg = f"A{len(key._material) * 8}GCM"
    else:
        alg = "HS" + key.algorithm["hash"]["name"].removeprefix("SHA-")
    return JsDict(kty="oct", k=_to_base64(key._material), alg=alg, ext=True, key_ops=list(key.usages))


def _hmac_key(raw: bytes, hash_name: str, extractable: bool, usages: list[str]) -> CryptoKey:
    if not raw:
        _fail("DataError", "crypto.subtle: a key for HMAC may not be empty.")
    described = {"name": "HMAC", "hash": JsDict(name=hash_name), "length": len(raw) * 8}
    return CryptoKey("secret", described, raw, extractable, usages)


def _hmac_of(key: CryptoKey, data: bytes) -> bytes:
    return hmac.digest(key._material, data, _HASHES[key.algorithm["hash"]["name"]])


def _aes_key(raw: bytes, extractable: bool, usages: list[str]) -> CryptoKey:
    _cryptography()
    if len(raw) not in (16, 24, 32):
        _fail("DataError", f"crypto.subtle: a key for AES-GCM has 128, 192 or 256 bits, not {len(raw) * 8}.")
    return CryptoKey("secret", {"name": "AES-GCM", "length": len(raw) * 8}, raw, extractable, usages)


def _cipher(chosen: dict[str, Any], key: CryptoKey, tag: bytes | None) -> Any:
    iv = _bytes(chosen.get("iv"), "iv")
    if not iv:
        _fail("OperationError", "crypto.subtle: AES-GCM needs an iv that is not empty.")
    ciphers = _cryptography().ciphers
    mode = ciphers.modes.GCM(iv, tag, min_tag_length=4 if tag is None else len(tag))
    cipher = ciphers.Cipher(ciphers.algorithms.AES(key._material), mode)
    made = cipher.encryptor() if tag is None else cipher.decryptor()
    if chosen.get("additionalData") is not None:
        made.authenticate_additional_data(_bytes(chosen["additionalData"], "additionalData"))
    return made


def _tag_size(chosen: dict[str, Any]) -> int:
    bits = chosen.get("tagLength", 128)
    if bits not in (32, 64, 96, 104, 112, 120, 128):
        _fail("OperationError", f"crypto.subtle: a tagLength of {bits} is not one of AES-GCM's.")
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
        _fail("OperationError", "crypto.subtle.decrypt: the data is shorter than its tag.")
    cipher = _cipher(chosen, key, data[-size:])
    from cryptography.exceptions import InvalidTag

    try:
        text: bytes = cipher.update(data[:-size]) + cipher.finalize()
    except InvalidTag:
        _fail("OperationError", "Decryption failed. This could be due to a ciphertext authentication failure.")
    return text


async def _derived(chosen: dict[str, Any], key: CryptoKey, length: int) -> bytes:
    if key.algorithm["name"] != chosen["name"]:
        _fail("InvalidAccessError", f"crypto.subtle: the key is for {key.algorithm['name']}, not {chosen['name']}.")
    if not length or length % 8 or length < 0:
        _fail("OperationError", "crypto.subtle: the length of derived bits must be a multiple of 8.")
    size, name = length // 8, _HASHES[_hash_of(chosen)]
    salt = _bytes(chosen.get("salt"), "salt")
    if chosen["name"] == "PBKDF2":
        rounds = int(chosen.get("iterations") or 0)
        if not 1 <= rounds <= 100_000:
            _fail("NotSupportedError", f"Pbkdf2 failed: iterations must be 1 to 100000, not {rounds}.")
        work = rounds if rounds > _OFF_LOOP_ROUNDS else 0
        made: bytes = await _off_loop(
            work and OFF_LOOP_BYTES + 1, lambda: hashlib.pbkdf2_hmac(name, key._material, salt, rounds, size)
        )
        return made
    if chosen["name"] == "HKDF":
        return _hkdf(name, key._material, salt, _bytes(chosen.get("info"), "info"), size)
    _fail("NotSupportedError", f"crypto.subtle: bits are derived by PBKDF2 and HKDF, not {chosen['name']}.")


def _hkdf(name: str, material: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    """RFC 5869."""
    width = hashlib.new(name).digest_size
    if size > 255 * width:
        _fail("OperationError", f"crypto.subtle: HKDF gives at most {255 * width * 8} bits.")
    secret = hmac.digest(salt or bytes(width), material, name)
    block, made = b"", b""
    for number in range(1, math.ceil(size / width) + 1):
        block = hmac.digest(secret, block + info + bytes([number]), name)
        made += block
    return made[:size]


# pairs of keys


def _described(chosen: dict[str, Any]) -> dict[str, Any]:
    return {"name": "Ed25519"} if chosen["name"] == "Ed25519" else {"name": "ECDSA", "namedCurve": chosen["namedCurve"]}


def _curve(ec: Any, chosen: dict[str, Any]) -> Any:
    name = chosen.get("namedCurve")
    if name not in _CURVES:
        _fail("NotSupportedError", f"crypto.subtle: namedCurve must be one of {', '.join(_CURVES)}, not {name}.")
    return getattr(ec, _CURVES[name][0])()


def _to_base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _loaded(form: str, key: Any, chosen: dict[str, Any]) -> Any:
    """The package's key. Raises DataError for what is none, or one of another kind."""
    primitives = _cryptography()
    ec, ed25519 = primitives.asymmetric.ec, primitives.asymmetric.ed25519
    curve = None if chosen["name"] == "Ed25519" else _curve(ec, chosen)
    try:
        if form == "jwk":
            made = _from_jwk(ec, ed25519, curve, key, chosen)
        elif form == "raw":
            raw = _bytes(key, "a raw key")
            if curve is None:
                made = ed25519.Ed25519PublicKey.from_public_bytes(raw)
            else:
                made = ec.EllipticCurvePublicKey.from_encoded_point(curve, raw)
        elif form == "spki":
            made = primitives.serialization.load_der_public_key(_bytes(key, "an spki key"))
        elif form == "pkcs8":
            made = primitives.serialization.load_der_private_key(_bytes(key, "a pkcs8 key"), None)
        else:
            _fail("NotSupportedError", f"crypto.subtle.importKey: the formats are raw, jwk, spki and pkcs8, not {form}.")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        _fail("DataError", f"crypto.subtle.importKey: this is no key of {chosen['name']}: {error}")
    right = (
        isinstance(made, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey)
        if curve is None
        else getattr(getattr(made, "curve", None), "name", "") == curve.name
    )
    if not right:
        _fail("DataError", f"crypto.subtle.importKey: this is a key of another kind than {chosen['name']}.")
    return made


def _from_jwk(ec: Any, ed25519: Any, curve: Any, key: Any, chosen: dict[str, Any]) -> Any:
    if curve is None:
        if key["kty"] != "OKP" or key["crv"] != "Ed25519":
            raise ValueError("kty must be OKP and crv Ed25519")
        if "d" in key:
            return ed25519.Ed25519PrivateKey.from_private_bytes(_from_base64(key["d"]))
        return ed25519.Ed25519PublicKey.from_public_bytes(_from_base64(key["x"]))
    if key["kty"] != "EC" or key["crv"] != chosen["namedCurve"]:
        raise ValueError(f"kty must be EC and crv {chosen['namedCurve']}")
    x, y = (int.from_bytes(_from_base64(key[name]), "big") for name in ("x", "y"))
    public = ec.EllipticCurvePublicNumbers(x, y, curve)
    if "d" in key:
        return ec.EllipticCurvePrivateNumbers(int.from_bytes(_from_base64(key["d"]), "big"), public).private_key()
    return public.public_key()


def _exported(form: str, key: CryptoKey) -> Any:
    serialization = _cryptography().serialization
    material, private = key._material, key.type == "private"
    plain = serialization.NoEncryption()
    if form == "pkcs8" and private:
        return ArrayBuffer(material.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, plain))
    if form == "spki" and not private:
        der = serialization.Encoding.DER
        return ArrayBuffer(material.public_bytes(der, serialization.PublicFormat.SubjectPublicKeyInfo))
    if form == "raw" and not private:
        return ArrayBuffer(_raw_public(serialization, key))
    if form != "jwk":
        _fail("NotSupportedError", f"crypto.subtle.exportKey: a {key.type} key cannot be exported as {form}.")
    jwk = JsDict(key_ops=list(key.usages), ext=True)
    public = material.public_key() if private else material
    if key.algorithm["name"] == "Ed25519":
        jwk.update(kty="OKP", crv="Ed25519", x=_to_base64(public.public_bytes_raw()))
        if private:
            jwk["d"] = _to_base64(material.private_bytes_raw())
        return jwk
    size = _CURVES[key.algorithm["namedCurve"]][1]
    numbers = public.public_numbers()
    jwk.update(kty="EC", crv=key.algorithm["namedCurve"])
    jwk.update({name: _to_base64(getattr(numbers, name).to_bytes(size, "big")) for name in ("x", "y")})
    if private:
        jwk["d"] = _to_base64(material.private_numbers().private_value.to_bytes(size, "big"))
    return jwk


def _raw_public(serialization: Any, key: CryptoKey) -> bytes:
    if key.algorithm["name"] == "Ed25519":
        raw: bytes = key._material.public_bytes_raw()
        return raw
    point: bytes = key._material.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return point


def _signed(chosen: dict[str, Any], key: CryptoKey, data: bytes) -> bytes:
    """ECDSA as r and s of the curve's size, one behind the other (IEEE P1363), as the standard has it."""
    if key.algorithm["name"] == "Ed25519":
        signature: bytes = key._material.sign(data)
        return signature
    primitives = _cryptography()
    asymmetric, size = primitives.asymmetric, _CURVES[key.algorithm["namedCurve"]][1]
    der = key._material.sign(data, asymmetric.ec.ECDSA(_hash_object(primitives, chosen)))
    r, s = asymmetric.utils.decode_dss_signature(der)
    return bytes(r.to_bytes(size, "big") + s.to_bytes(size, "big"))


def _verified(chosen: dict[str, Any], key: CryptoKey, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    primitives = _cryptography()
    try:
        if key.algorithm["name"] == "Ed25519":
            key._material.verify(signature, data)
            return True
        size = _CURVES[key.algorithm["namedCurve"]][1]
        if len(signature) != 2 * size:
            return False
        r, s = (int.from_bytes(part, "big") for part in (signature[:size], signature[size:]))
        der = primitives.asymmetric.utils.encode_dss_signature(r, s)
        key._material.verify(der, data, primitives.asymmetric.ec.ECDSA(_hash_object(primitives, chosen)))
    except InvalidSignature:
        return False
    return True


def _hash_object(primitives: Any, chosen: dict[str, Any]) -> Any:
    return getattr(primitives.hashes, _hash_of(chosen).replace("-", ""))()
