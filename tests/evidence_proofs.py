"""Signatures and proofs that an evidence file holds, for verify_evidence.py: Ed25519, ECDSA on P-256, the signed notes and Merkle trees of
transparency logs, and reviews signed with SSH keys. Nothing but Python's standard library.
"""

import base64
import binascii
import hashlib
import re
import uuid


class Broken(Exception):
    """Bytes that are not what they should be."""


# --- Ed25519, RFC 8032 section 5.1, in extended coordinates -------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)
NEUTRAL = (0, 1, 1, 0)


def add(p, q):
    a = (p[1] - p[0]) * (q[1] - q[0]) % P
    b = (p[1] + p[0]) * (q[1] + q[0]) % P
    c = 2 * p[3] * q[3] * D % P
    d = 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def multiply(scalar, point):
    result = NEUTRAL
    while scalar > 0:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def same(p, q):
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def decode_point(encoded):
    """The point, or None for an encoding that is not canonical or of no point."""
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P != 0:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P != 0 or (x == 0 and sign == 1):
        return None
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


BASE = decode_point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def signature_fits(public, message, signature):
    key, r = decode_point(public), decode_point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if key is None or r is None or s >= L:
        return False
    if same(multiply(8, key), NEUTRAL) or same(multiply(8, r), NEUTRAL):
        return False
    h = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    return same(multiply(s, BASE), add(r, multiply(h, key)))


# --- ECDSA on P-256, FIPS 186-4, in affine coordinates ------------------------------------------------------------------

P256 = 2**256 - 2**224 + 2**192 + 2**96 - 1
N256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B256 = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G256 = (0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
        0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5)


def add_p256(p, q):
    if p is None or q is None:
        return p or q
    if p[0] == q[0]:
        if (p[1] + q[1]) % P256 == 0:
            return None
        slope = (3 * p[0] * p[0] - 3) * pow(2 * p[1], -1, P256)
    else:
        slope = (q[1] - p[1]) * pow(q[0] - p[0], -1, P256)
    x = (slope * slope - p[0] - q[0]) % P256
    return (x, (slope * (p[0] - x) - p[1]) % P256)


def multiply_p256(scalar, point):
    result = None
    while scalar > 0:
        if scalar & 1:
            result = add_p256(result, point)
        point = add_p256(point, point)
        scalar >>= 1
    return result


def p256_fits(public, message, r, s):
    x, y = int.from_bytes(public[1:33], "big"), int.from_bytes(public[33:], "big")
    on_curve = x < P256 and y < P256 and (y * y - x * x * x + 3 * x - B256) % P256 == 0
    if len(public) != 65 or public[0] != 4 or not on_curve or not (0 < r < N256 and 0 < s < N256):
        return False
    h, inverse = int.from_bytes(hashlib.sha256(message).digest(), "big"), pow(s, -1, N256)
    point = add_p256(multiply_p256(h * inverse % N256, G256), multiply_p256(r * inverse % N256, (x, y)))
    return point is not None and point[0] % N256 == r


# --- Signed notes, C2SP signed-note, tlog-checkpoint and tlog-cosignature -----------------------------------------------


class NoteKey:
    """A public key, NAME+ID+BASE64; kind 1 of logs, 4 of witnesses."""

    def __init__(self, text):
        self.text = text.strip()
        self.name, self.id, encoded = self.text.split("+", 2)
        typed = base64.b64decode(encoded, validate=True)
        self.kind, self.public = typed[0], typed[1:]
        if hashlib.sha256(self.name.encode() + b"\n" + typed).hexdigest()[:8] != self.id or len(typed) != 33:
            raise ValueError(f"{text!r} is not a key")

    def fits(self, text, signature):
        if self.kind == 1:
            return len(signature) == 64 and signature_fits(self.public, text, signature)
        time = int.from_bytes(signature[:8], "big")
        said = b"cosignature/v1\ntime %d\n" % time + text
        return len(signature) == 72 and 0 < time < 2**63 and signature_fits(self.public, said, signature[8:])


class LogCheckpoint:
    def __init__(self, note):
        if len(note) > 131072:
            raise Broken("a note that is too long")
        try:
            whole = note.decode()
        except UnicodeDecodeError as error:
            raise Broken("a note that is not text") from error
        head, separator, tail = whole.rpartition("\n\n")
        if not separator or not tail.endswith("\n") or any(c < " " and c != "\n" for c in whole):
            raise Broken("not a signed note")
        self.text, self.signatures = (head + "\n").encode(), []
        for line in tail[:-1].split("\n"):
            match = re.fullmatch("\u2014 ([^ +]+) ([A-Za-z0-9+/=]+)", line)
            try:
                signature = base64.b64decode(match[2], validate=True) if match else b""
            except binascii.Error:
                signature = b""
            if len(signature) < 5:
                raise Broken("a line that is no signature")
            self.signatures.append((match[1], signature[:4].hex(), signature[4:]))
        lines = head.split("\n")
        if len(lines) < 3 or not lines[0] or not re.fullmatch("0|[1-9][0-9]*", lines[1]):
            raise Broken("not a checkpoint of a log")
        self.origin, self.size = lines[0], int(lines[1])
        try:
            self.root = base64.b64decode(lines[2], validate=True)
        except binascii.Error as error:
            raise Broken("not a checkpoint of a log") from error
        if len(self.root) != 32:
            raise Broken("not a checkpoint of a log")

    def signed_by(self, key):
        own = [signature for name, id, signature in self.signatures if (name, id) == (key.name, key.id)]
        return bool(own) and all(key.fits(self.text, signature) for signature in own)

    def of_log(self, key):
        return key.kind == 1 and key.name == self.origin and self.signed_by(key)


# --- Merkle trees, RFC 6962 section 2.1 (the algorithms of RFC 9162 section 2.1.3.2 and 2.1.4.2) ------------------------


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def hashes_of(content):
    if len(content) % 32 or len(content) > 64 * 32:
        raise Broken("the length of a proof is wrong")
    return [content[at:at + 32] for at in range(0, len(content), 32)]


def is_included(leaf, index, path, size, root):
    if index >= size or size > 2**62:
        return False
    at, last, found = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node(sibling, found)
            while not at & 1 and at != 0:
                at, last = at >> 1, last >> 1
        else:
            found = node(found, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def continues(old, old_root, path, size, root):
    if not 1 <= old <= size <= 2**62:
        return False
    if old == size:
        return not path and old_root == root
    path = list(path)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    at, last = old - 1, size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            before, after = node(sibling, before), node(sibling, after)
            while not at & 1 and at != 0:
                at, last = at >> 1, last >> 1
        else:
            after = node(after, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and (before, after) == (old_root, root)


# --- Signed reviews, OpenSSH's PROTOCOL.sshsig and PROTOCOL.u2f ---------------------------------------------------------

NAMESPACE = b"breakglass-review@v1"
ARMOUR = (b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----")
REVIEW = re.compile(
    "breakglass-review v1\nsession: (?P<session>[0-9a-f-]{36})\nhost: (?P<host>[0-9a-f-]{36})\nstream: (?P<stream>[0-9a-f]{32})\n"
    "last-frame: (?P<frame>[1-9][0-9]{0,19})\nlast-hash: (?P<hash>[0-9a-f]{64})\nlog: (?P<log>.*)\nlog-size: (?P<size>0|[1-9][0-9]{0,19})\n"
    "log-root: (?P<root>|[0-9a-f]{64})\nreviewer: (?P<reviewer>.+)\nverdict: (?P<verdict>ok|concern)\nnote: (?P<note>.*)\n"
    "client-time: [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\n")


def ssh_string(data, at):
    if len(data) < at + 4:
        raise Broken("a string that is cut short")
    end = at + 4 + int.from_bytes(data[at:at + 4], "big")
    if len(data) < end:
        raise Broken("a string that is cut short")
    return data[at + 4:end], end


def ssh_strings(data, count, rest=0):
    """Exactly so many strings, and behind them `rest` more bytes."""
    found, at = [], 0
    for _ in range(count):
        value, at = ssh_string(data, at)
        found.append(value)
    if len(data) != at + rest:
        raise Broken("something is left over")
    return found + ([data[at:]] if rest else [])


def pack(data):
    return len(data).to_bytes(4, "big") + data


class Review:
    def __init__(self, signed):
        at = signed.find(b"\n" + ARMOUR[0]) + 1
        if at == 0 or at > 4096 or len(signed) - at > 4096:
            raise Broken("a review without a signature")
        self.bytes = signed[:at]
        try:
            fields = REVIEW.fullmatch(self.bytes.decode())
        except UnicodeDecodeError:
            fields = None
        if not fields or any(fields[name] != fields[name].strip() for name in ("log", "reviewer", "note")):
            raise Broken("the review cannot be read")
        if bool(fields["log"]) != bool(fields["root"]) or bool(fields["log"]) != (fields["size"] != "0"):
            raise Broken("the review's log cannot be read")
        try:
            ids = [uuid.UUID(fields["session"]).bytes, uuid.UUID(fields["host"]).bytes, bytes.fromhex(fields["stream"])]
        except ValueError as error:
            raise Broken("the review cannot be read") from error
        self.ids, self.frame, self.hash = ids, int(fields["frame"]), bytes.fromhex(fields["hash"])
        self.reviewer, self.verdict = fields["reviewer"], fields["verdict"]
        self.log = (fields["log"], int(fields["size"]), bytes.fromhex(fields["root"])) if fields["log"] else None
        self.read_signature(signed[at:])

    def read_signature(self, armour):
        lines = armour.rstrip(b"\r\n").splitlines()
        try:
            blob = base64.b64decode(b"".join(lines[1:-1]), validate=True)
        except binascii.Error as error:
            raise Broken("the armour cannot be read") from error
        if len(lines) < 3 or (lines[0], lines[-1]) != ARMOUR or blob[:10] != b"SSHSIG\0\0\0\x01":
            raise Broken("not a signature")
        self.key, namespace, reserved, hash_name, signature = ssh_strings(blob[10:], 5)
        if reserved or namespace != NAMESPACE or hash_name not in (b"sha256", b"sha512"):
            raise Broken("the signature is for something else")
        digest = hashlib.new(hash_name.decode(), self.bytes).digest()
        message = b"SSHSIG" + pack(namespace) + pack(b"") + pack(hash_name) + pack(digest)
        if not self.fits(message, signature):
            raise Broken("the signature does not fit")

    def fits(self, message, signature):
        kind = ssh_string(self.key, 0)[0]
        trailer = b""
        if kind.startswith(b"sk-"):
            algorithm, proper, trailer = ssh_strings(signature, 2, 5)
        else:
            algorithm, proper = ssh_strings(signature, 2)
        parts = ssh_strings(self.key, {b"ssh-ed25519": 2, b"sk-ssh-ed25519@openssh.com": 3, b"ecdsa-sha2-nistp256": 3,
                                       b"sk-ecdsa-sha2-nistp256@openssh.com": 4}.get(kind, 1))
        if len(parts) == 1 or algorithm != kind:
            raise Broken("a type of key that is not taken")
        public = parts[2 if b"ecdsa" in kind else 1]
        if trailer:
            if not parts[-1].startswith(b"ssh:") or not trailer[0] & 1:
                raise Broken("nobody touched the token, or it is not for SSH")
            message = hashlib.sha256(parts[-1]).digest() + trailer + hashlib.sha256(message).digest()
        if b"ed25519" in kind:
            return len(proper) == 64 and len(public) == 32 and signature_fits(public, message, proper)
        r, s = ssh_strings(proper, 2)
        return p256_fits(public, message, int.from_bytes(r, "big"), int.from_bytes(s, "big"))

    def fingerprint(self):
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.key).digest()).decode().rstrip("=")


def read_reviewers(text):
    """Names with their keys; lines that cannot be understood allow nothing."""
    found = []
    for words in (line.split() for line in text.splitlines()):
        if not words or words[0].startswith("#") or re.search(r'[*?!"]', words[0]):
            continue
        names, rest = words[0].split(","), words[1:]
        if rest and rest[0].startswith("namespaces="):
            match = re.fullmatch(r'namespaces="([^*?!"]*)"', rest[0])
            if not match or NAMESPACE.decode() not in match[1].split(","):
                continue
            rest = rest[1:]
        try:
            key = base64.b64decode(rest[1], validate=True)
            if ssh_string(key, 0)[0] == rest[0].encode() and all(names):
                found += [(name, key) for name in names]
        except (IndexError, binascii.Error, Broken):
            pass
    return found
