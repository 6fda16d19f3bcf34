"""compat/subtle.py: the published vectors, round trips, and what is refused."""

import asyncio
import hashlib
import sys
import threading

import pytest
from js import crypto

from roost.errors import JsException, JsTypeError

subtle = crypto.subtle


def run(coroutine):
    async def awaited():
        return await coroutine

    return asyncio.run(awaited())


def refused(coroutine, name, text=None):
    with pytest.raises(JsException, match=text) as found:
        run(coroutine)
    assert found.value.name == name


def secret(raw, algorithm, *usages, extractable=False):
    return run(subtle.importKey("raw", raw, algorithm, extractable, list(usages)))


def test_digests():
    assert run(subtle.digest("SHA-256", b"abc")).hex().startswith("ba7816bf8f01cfea414140de5dae2223")
    assert run(subtle.digest({"name": "sha-1"}, memoryview(b"abc"))).hex() == "a9993e364706816aba3e25717850c26c9cd0d89d"
    assert len(run(subtle.digest("SHA-512", bytearray(b"")))) == 64
    assert run(subtle.digest("MD5", b"")).hex() == "d41d8cd98f00b204e9800998ecf8427e"
    assert type(run(subtle.digest("SHA-384", b""))).__name__ == "ArrayBuffer"
    refused(subtle.digest("SHA-3", b""), "NotSupportedError", "SHA-3 is not supported")
    refused(subtle.digest("HMAC", b""), "NotSupportedError")
    refused(subtle.digest("SHA-256", "text"), "TypeError", "must be bytes, not str")


@pytest.mark.parametrize(("size", "elsewhere"), [(64 * 1024, False), (64 * 1024 + 1, True)])
def test_large_inputs_leave_the_loop(monkeypatch, size, elsewhere):
    threads = []
    new = hashlib.new
    monkeypatch.setattr(hashlib, "new", lambda *a, **k: (threads.append(threading.current_thread()), new(*a, **k))[1])
    assert run(subtle.digest("SHA-256", bytes(size))) == new("sha256", bytes(size)).digest()
    assert [thread is not threading.main_thread() for thread in threads] == [elsewhere]


def test_hmac():
    """RFC 4231, test case 2."""
    key = secret(b"Jefe", {"name": "HMAC", "hash": "SHA-256"}, "sign", "verify", extractable=True)
    signature = run(subtle.sign("HMAC", key, b"what do ya want for nothing?"))
    assert signature.hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert run(subtle.verify("hmac", key, signature, b"what do ya want for nothing?")) is True
    assert run(subtle.verify("HMAC", key, signature, b"what?")) is False
    assert run(subtle.verify("HMAC", key, signature[:-1], b"what do ya want for nothing?")) is False
    assert (key.type, key.usages, key.algorithm.hash.name, key.algorithm.length) == (
        "secret",
        ["sign", "verify"],
        "SHA-256",
        32,
    )
    assert run(subtle.exportKey("raw", key)) == b"Jefe"
    assert run(subtle.exportKey("jwk", key)) == {
        "kty": "oct", "k": "SmVmZQ", "alg": "HS256", "ext": True, "key_ops": ["sign", "verify"],
    }  # fmt: skip
    jwk = {"kty": "oct", "k": "SmVmZQ"}
    again = run(subtle.importKey("jwk", jwk, {"name": "HMAC", "hash": "SHA-256"}, False, ["sign"]))
    assert run(subtle.sign("HMAC", again, b"x")) == run(subtle.sign("HMAC", key, b"x"))
    refused(subtle.exportKey("raw", again), "InvalidAccessError", "not extractable")
    refused(subtle.verify("HMAC", again, signature, b"x"), "InvalidAccessError", "usages are sign")
    refused(subtle.encrypt("AES-GCM", again, b"x", iv=b"1"), "InvalidAccessError", "for HMAC, not AES-GCM")
    assert len(run(subtle.exportKey("raw", run(subtle.generateKey("HMAC", True, ["sign"], hash="SHA-512"))))) == 128


def test_aes_gcm():
    """The Galois/Counter Mode of Operation, McGrew and Viega, test case 4."""
    key = secret(bytes.fromhex("feffe9928665731c6d6a8f9467308308"), "AES-GCM", "encrypt", "decrypt")
    chosen = {
        "name": "AES-GCM",
        "iv": bytes.fromhex("cafebabefacedbaddecaf888"),
        "additionalData": bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
    }
    plain = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    sealed = run(subtle.encrypt(chosen, key, plain))
    assert sealed[:16].hex() == "42831ec2217774244b7221b784d0d49c"
    assert sealed[-16:].hex() == "5bc94fbc3221a5db94fae95ae7121a47"
    assert run(subtle.decrypt(chosen, key, sealed)) == plain
    for changed in (sealed[:-1] + b"x", b"x" + sealed[1:], sealed[:10]):
        refused(subtle.decrypt(chosen, key, changed), "OperationError")
    refused(subtle.decrypt({**chosen, "additionalData": b""}, key, sealed), "OperationError")
    short = run(subtle.encrypt({**chosen, "tagLength": 96}, key, plain))
    assert run(subtle.decrypt({**chosen, "tagLength": 96}, key, short)) == plain
    refused(subtle.encrypt({**chosen, "tagLength": 100}, key, plain), "OperationError", "tagLength")
    refused(subtle.encrypt({"name": "AES-GCM"}, key, plain), "TypeError", "iv must be bytes")
    refused(subtle.importKey("raw", b"short", "AES-GCM", False, ["encrypt"]), "DataError", "128, 192 or 256")
    made = run(subtle.generateKey({"name": "AES-GCM", "length": 256}, True, ["encrypt"]))
    assert run(subtle.exportKey("jwk", made)).alg == "A256GCM"


def test_ed25519():
    """RFC 8032 §7.1, test 2."""
    jwk = {"kty": "OKP", "crv": "Ed25519", "d": "TM0Imyj_ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U-4pvs", "x": ""}
    private = run(subtle.importKey("jwk", jwk, "Ed25519", True, ["sign"]))
    signature = run(subtle.sign("Ed25519", private, b"\x72"))
    assert signature.hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")
    raw = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    public = run(subtle.importKey("raw", raw, {"name": "Ed25519"}, True, ["verify"]))
    assert run(subtle.verify("Ed25519", public, signature, b"\x72")) is True
    assert run(subtle.verify("Ed25519", public, signature, b"\x73")) is False
    refused(subtle.importKey("raw", b"x", "Ed25519", True, ["verify"]), "DataError")
    refused(subtle.sign("Ed25519", public, b""), "InvalidAccessError")


@pytest.mark.parametrize(("curve", "size"), [("P-256", 64), ("P-384", 96), ("P-521", 132)])
def test_ecdsa(curve, size):
    algorithm = {"name": "ECDSA", "namedCurve": curve}
    pair = run(subtle.generateKey(algorithm, True, ["sign", "verify"]))
    assert (pair.publicKey.usages, pair.privateKey.usages) == (["verify"], ["sign"])
    use = {"name": "ECDSA", "hash": {"name": "SHA-256"}}
    signature = run(subtle.sign(use, pair.privateKey, b"text"))
    assert len(signature) == size
    for form, key, usages in (
        ("jwk", pair.privateKey, ["sign"]),
        ("pkcs8", pair.privateKey, ["sign"]),
        ("jwk", pair.publicKey, ["verify"]),
        ("spki", pair.publicKey, ["verify"]),
        ("raw", pair.publicKey, ["verify"]),
    ):
        again = run(subtle.importKey(form, run(subtle.exportKey(form, key)), algorithm, True, usages))
        assert again.type == key.type
        if again.type == "public":
            assert run(subtle.verify(use, again, signature, b"text")) is True
            assert run(subtle.verify(use, again, signature, b"other")) is False
            assert run(subtle.verify(use, again, b"short", b"text")) is False
        else:
            assert run(subtle.verify(use, pair.publicKey, run(subtle.sign(use, again, b"x")), b"x")) is True
    other = {"name": "ECDSA", "namedCurve": "P-384" if curve == "P-256" else "P-256"}
    for form in ("jwk", "spki", "raw"):
        exported = run(subtle.exportKey(form, pair.publicKey))
        refused(subtle.importKey(form, exported, other, True, ["verify"]), "DataError")


def test_derived():
    """RFC 6070, test 2; RFC 5869, test 1."""
    password = secret(b"password", "PBKDF2", "deriveBits", "deriveKey")
    chosen = {"name": "PBKDF2", "hash": "SHA-1", "salt": b"salt", "iterations": 4096}
    assert run(subtle.deriveBits(chosen, password, 160)).hex() == "4b007901b765489abead49d926f721d065a429c1"
    refused(subtle.deriveBits({**chosen, "iterations": 100_001}, password, 160), "NotSupportedError", "100000")
    key = run(subtle.deriveKey(chosen, password, {"name": "AES-GCM", "length": 128}, True, ["encrypt"]))
    assert run(subtle.exportKey("raw", key)).hex() == "4b007901b765489abead49d926f721d0"
    material = secret(b"\x0b" * 22, "HKDF", "deriveBits")
    chosen = {"name": "HKDF", "hash": "SHA-256", "salt": bytes(range(13)), "info": bytes(range(0xF0, 0xFA))}
    assert run(subtle.deriveBits(chosen, material, 42 * 8)).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    refused(subtle.deriveBits(chosen, material, 255 * 32 * 8 + 8), "OperationError")
    refused(subtle.importKey("raw", b"x", "HKDF", True, ["deriveBits"]), "SyntaxError")


def test_equal_in_constant_time():
    assert subtle.timingSafeEqual(b"ab", bytearray(b"ab")) is True
    assert subtle.timingSafeEqual(b"ab", b"ac") is False
    with pytest.raises(JsTypeError):
        subtle.timingSafeEqual(b"ab", b"abc")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat", None)
    importing = subtle.importKey("raw", bytes(16), "AES-GCM", False, ["encrypt"])
    refused(importing, "NotSupportedError", r"pip install 'roost\[crypto")
    assert run(subtle.digest("SHA-256", b""))
