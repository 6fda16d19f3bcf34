"""The keys of `crypto.subtle`: algorithms by their names, and keys made, imported and exported.

Source: Web Cryptography API §13 (CryptoKey), §14.3.9 and §14.3.10; RFC 7517 for jwk.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, NoReturn

from roost.api.buffers import ArrayBuffer
from roost.errors import JsException, JsTypeError
from roost.js_values import JsDict

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType


HASHES: Final = {"SHA-1": "sha1", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512", "MD5": "md5"}


CURVES: Final = {"P-256": ("SECP256R1", 32), "P-384": ("SECP384R1", 48), "P-521": ("SECP521R1", 66)}


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


def material_of(key: CryptoKey) -> Any:
    """Bytes of a secret key, the package's object of a pair's; for `crypto.subtle` alone."""
    return key._material


def fail(name: str, message: str) -> NoReturn:
    raise JsException(message, name)


def algorithm_of(given: Any, extra: dict[str, Any]) -> dict[str, Any]:
    """An algorithm, as a name or an object, with its name in its usual spelling."""
    chosen = {"name": given} if isinstance(given, str) else dict(given or {})
    chosen.update(extra)
    name = chosen.get("name")
    if not isinstance(name, str):
        raise JsTypeError("An algorithm needs a name, such as 'SHA-256' or {'name': 'AES-GCM', 'iv': iv}.")
    known = (*HASHES, "HMAC", "AES-GCM", "ECDSA", "Ed25519", "PBKDF2", "HKDF")
    chosen["name"] = next((each for each in known if each.lower() == name.lower()), name)
    if chosen["name"] not in known:
        fail("NotSupportedError", f"crypto.subtle: {name} is not supported by Roost; it has {', '.join(known)}.")
    return chosen


def hash_of(chosen: dict[str, Any]) -> str:
    given = chosen.get("hash")
    name = given if isinstance(given, str) else (given or {}).get("name", "")
    found = next((each for each in HASHES if each.lower() == str(name).lower()), None)
    if found is None:
        fail("NotSupportedError", f"crypto.subtle: {name or 'no hash'} is not supported; use one of {', '.join(HASHES)}.")
    return found


def bytes_of(data: Any, what: str) -> bytes:
    if isinstance(data, str) or not isinstance(data, bytes | bytearray | memoryview):
        raise JsTypeError(f"crypto.subtle: {what} must be bytes, not {type(data).__name__}.")
    return bytes(data)


def cryptography_of() -> ModuleType:
    try:
        from cryptography.hazmat import primitives
        from cryptography.hazmat.primitives import ciphers, hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
    except ImportError:
        fail(
            "NotSupportedError",
            "crypto.subtle: AES-GCM, ECDSA and Ed25519 need the package cryptography: pip install 'roost[crypto]'.",
        )
    assert all((ciphers, hashes, serialization, ec, ed25519, utils))  # loaded: they are attributes of the package now
    return primitives


def secret_bytes(form: str, key: Any) -> bytes:
    if form == "raw":
        return bytes_of(key, "a raw key")
    if form == "jwk":
        if key.get("kty") != "oct" or not isinstance(key.get("k"), str):
            fail("DataError", "crypto.subtle.importKey: a secret key as jwk has kty 'oct' and k.")
        return _from_base64(key["k"])
    fail("NotSupportedError", f"crypto.subtle.importKey: a secret key has the formats raw and jwk, not {form}.")


def secret_exported(form: str, key: CryptoKey) -> Any:
    if form == "raw":
        return ArrayBuffer(key._material)
    if form != "jwk":
        fail("NotSupportedError", f"crypto.subtle.exportKey: a secret key has the formats raw and jwk, not {form}.")
    if key.algorithm["name"] == "AES-GCM":
        alg = f"A{len(key._material) * 8}GCM"
    else:
        alg = "HS" + key.algorithm["hash"]["name"].removeprefix("SHA-")
    return JsDict(kty="oct", k=_to_base64(key._material), alg=alg, ext=True, key_ops=list(key.usages))


def hmac_key(raw: bytes, hash_name: str, extractable: bool, usages: list[str]) -> CryptoKey:
    if not raw:
        fail("DataError", "crypto.subtle: a key for HMAC may not be empty.")
    described = {"name": "HMAC", "hash": JsDict(name=hash_name), "length": len(raw) * 8}
    return CryptoKey("secret", described, raw, extractable, usages)


def aes_key(raw: bytes, extractable: bool, usages: list[str]) -> CryptoKey:
    cryptography_of()
    if len(raw) not in (16, 24, 32):
        fail("DataError", f"crypto.subtle: a key for AES-GCM has 128, 192 or 256 bits, not {len(raw) * 8}.")
    return CryptoKey("secret", {"name": "AES-GCM", "length": len(raw) * 8}, raw, extractable, usages)


def described(chosen: dict[str, Any]) -> dict[str, Any]:
    return {"name": "Ed25519"} if chosen["name"] == "Ed25519" else {"name": "ECDSA", "namedCurve": chosen["namedCurve"]}


def curve_of(ec: Any, chosen: dict[str, Any]) -> Any:
    name = chosen.get("namedCurve")
    if name not in CURVES:
        fail("NotSupportedError", f"crypto.subtle: namedCurve must be one of {', '.join(CURVES)}, not {name}.")
    return getattr(ec, CURVES[name][0])()


def _to_base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def loaded(form: str, key: Any, chosen: dict[str, Any]) -> Any:
    """The package's key. Raises DataError for what is none, or one of another kind."""
    primitives = cryptography_of()
    ec, ed25519 = primitives.asymmetric.ec, primitives.asymmetric.ed25519
    curve = None if chosen["name"] == "Ed25519" else curve_of(ec, chosen)
    try:
        if form == "jwk":
            made = _from_jwk(ec, ed25519, curve, key, chosen)
        elif form == "raw":
            raw = bytes_of(key, "a raw key")
            if curve is None:
                made = ed25519.Ed25519PublicKey.from_public_bytes(raw)
            else:
                made = ec.EllipticCurvePublicKey.from_encoded_point(curve, raw)
        elif form == "spki":
            made = primitives.serialization.load_der_public_key(bytes_of(key, "an spki key"))
        elif form == "pkcs8":
            made = primitives.serialization.load_der_private_key(bytes_of(key, "a pkcs8 key"), None)
        else:
            fail("NotSupportedError", f"crypto.subtle.importKey: the formats are raw, jwk, spki and pkcs8, not {form}.")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        fail("DataError", f"crypto.subtle.importKey: this is no key of {chosen['name']}: {error}")
    right = (
        isinstance(made, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey)
        if curve is None
        else getattr(getattr(made, "curve", None), "name", "") == curve.name
    )
    if not right:
        fail("DataError", f"crypto.subtle.importKey: this is a key of another kind than {chosen['name']}.")
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


def exported(form: str, key: CryptoKey) -> Any:
    serialization = cryptography_of().serialization
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
        fail("NotSupportedError", f"crypto.subtle.exportKey: a {key.type} key cannot be exported as {form}.")
    jwk = JsDict(key_ops=list(key.usages), ext=True)
    public = material.public_key() if private else material
    if key.algorithm["name"] == "Ed25519":
        jwk.update(kty="OKP", crv="Ed25519", x=_to_base64(public.public_bytes_raw()))
        if private:
            jwk["d"] = _to_base64(material.private_bytes_raw())
        return jwk
    size = CURVES[key.algorithm["namedCurve"]][1]
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
