#!/usr/bin/env python3
"""Verifies an evidence file. Written from docs/EVIDENCE.md alone, with nothing but Python's standard library.

What lies inside the frames can only be looked at where a zstd decompressor is at hand (Python 3.14, or the package zstandard); without
one the checks `content` and `complete` stay unproved, and everything that is signed is checked all the same.

    verify_evidence.py FILE [--host-key HEX]... [--json]

Ends with 0 if the file is verified, 1 if it is broken, 6 if it is sound but no host key was given.
"""

import argparse
import hashlib
import json
import re
import struct
import sys
import uuid

try:
    import zstandard

    def decompress(payload, size):
        return zstandard.ZstdDecompressor().decompress(payload, max_output_size=max(size, 1))

except ImportError:
    try:
        from compression import zstd

        def decompress(payload, size):
            return zstd.decompress(payload)

    except ImportError:
        decompress = None

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


# --- The parts of a file ------------------------------------------------------------------------------------------------

MANIFEST, LINK, CHECKPOINT, FRAME, END = 1, 2, 3, 4, 0xFFFFFFFF
RAW_MAX, PAYLOAD_MAX = 33_554_432, 33_817_600
SECTION_MAX = PAYLOAD_MAX + 152
OPENED, CLOSED = 2, 4
SLACK_NS = 120_000_000_000


class Broken(Exception):
    """Bytes that are not what they should be."""


class FileBroken(Exception):
    """A file that cannot be read on; with the offset."""


class Statement:
    def __init__(self, signed):
        if not 280 <= len(signed) <= 216 + 3072 * 16 + 64:
            raise Broken("the length of a statement is wrong")
        self.bytes, self.signature = signed[:-64], signed[-64:]
        fields = struct.unpack_from("<4sBBH16s32sQ32s16sQ32s16sQq16sQI4s", self.bytes)
        (magic, self.kind, zero, self.reasons, self.host_id, self.host_key, self.epoch, self.next_key, self.stream, self.seq,
         self.hash, self.boot_id, self.boot_ns, self.wall_ns, self.session, self.session_seq, count, tail) = fields
        if magic != b"BGS1" or zero or tail != bytes(4) or self.kind not in (1, 2, 3):
            raise Broken("not a statement")
        if count > 3072 or len(self.bytes) != 216 + 16 * count:
            raise Broken("the length of a statement is wrong")
        if self.kind == 1 and self.next_key != bytes(32):
            raise Broken("a checkpoint that names a key")
        if (self.seq == 0) != (self.hash == bytes(32)):
            raise Broken("sequence and hash do not fit")
        marks = self.reasons & (OPENED | CLOSED)
        if marks == OPENED | CLOSED:
            raise Broken("it marks an opening and a closing")
        if (marks == 0) != (self.session == bytes(16)) or (marks == 0) != (self.session_seq == 0):
            raise Broken("session and reasons do not fit")
        if self.session_seq > self.seq:
            raise Broken("it marks a frame that it does not cover")
        self.numbers = {}
        last = (-1, -1)
        for at in range(216, len(self.bytes), 16):
            ring, zeros, cpu, number = struct.unpack_from("<B3sIQ", self.bytes, at)
            if zeros != bytes(3) or (ring, cpu) <= last:
                raise Broken("the numbers are not in order")
            last = (ring, cpu)
            self.numbers[last] = number

    def signed_by(self, key):
        return signature_fits(key, b"breakglass-statement-v1\0" + self.bytes, self.signature)


class Frame:
    def __init__(self, data):
        if len(data) < 120 or data[:4] != b"BGF1":
            raise Broken("not a frame")
        (codec, zeros, self.stream, self.boot_id, self.seq, self.prev, _, self.last_boot_ns, self.wall_offset_ns, self.events,
         self.raw_len, length, tail) = struct.unpack_from("<B3s16s16sQ32sQQqIII4s", data, 4)
        if length > PAYLOAD_MAX or len(data) != 120 + length + 32:
            raise Broken("the length of the frame is wrong")
        if codec != 1 or zeros != bytes(3) or tail != bytes(4) or self.raw_len > RAW_MAX:
            raise Broken("the header of the frame is wrong")
        self.payload, self.hash = data[120:-32], data[-32:]
        if hashlib.sha256(b"breakglass-frame-v1\0" + data[:-32]).digest() != self.hash:
            raise Broken("the hash of the frame does not fit its content")
        if self.seq == 0 or (self.seq == 1) != (self.prev == bytes(32)):
            raise Broken("sequence and hash of the frame before do not fit")


def sections(data):
    """Yields type, offset of the content, and content, up to an end that fits."""
    if data[:8] != b"BGEVID1\n":
        raise FileBroken("not an evidence file", 0)
    at, count, last = 8, 0, 0
    while True:
        begin = at
        if len(data) < begin + 16:
            raise FileBroken("the file is cut short", len(data))
        kind, zero, length = struct.unpack_from("<IIQ", data, begin)
        if zero or length > SECTION_MAX:
            raise FileBroken("a section that is none", begin)
        if kind < last or (kind == MANIFEST) != (count == 0):
            raise FileBroken("a section out of its place", begin)
        at = begin + 16 + length
        if len(data) < at:
            raise FileBroken("the file is cut short", len(data))
        content = data[begin + 16:at]
        if kind == END:
            if content != struct.pack("<Q", count) + hashlib.sha256(data[:begin]).digest():
                raise FileBroken("the digest does not fit", begin)
            if len(data) > at:
                raise FileBroken("something follows the end", at)
            return
        yield kind, begin + 16, content
        count, last = count + 1, kind


# --- What is in a frame: as much of protocol buffers as is needed -------------------------------------------------------


def varint(data, at):
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise Broken("a number is cut short")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value & (2**64 - 1), at


def fields(data):
    """Yields field number and value: an integer, or bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = varint(data, at)
        elif wire in (1, 2, 5):
            length, at = (8, at) if wire == 1 else (4, at) if wire == 5 else varint(data, at)
            if at + length > len(data):
                raise Broken("a field is cut short")
            value, at = data[at:at + length], at + length
        else:
            raise Broken("an unknown kind of field")
        yield key >> 3, value


def message(data):
    return dict(fields(data))


class Numbers:
    """Which records of each ring and CPU occur, as sorted stretches."""

    def __init__(self, before, until):
        self.before, self.until = dict(before), dict(until)
        self.seen, self.records, self.declared, self.holes = {}, 0, 0, []

    def add(self, key, first, last):
        self.seen.setdefault(key, []).append((first, last))

    def settle(self, at_end):
        seen, self.seen = self.seen, {}
        if at_end:
            for key in self.until:
                if key in self.before:
                    seen.setdefault(key, [])
        for key, stretches in sorted(seen.items()):
            stretches.sort()
            upto = self.before.get(key, max(stretches[0][0] - 1, 0) if stretches else 0)
            for first, last in stretches:
                if first > upto + 1:
                    self.holes.append((key, upto + 1, first - 1))
                upto = max(upto, last)
            if at_end and self.until.get(key, 0) > upto:
                self.holes.append((key, upto + 1, self.until[key]))

    def restart(self):
        self.settle(False)
        self.before = {}


# Fields of Batch, Event and the kinds of events that matter here (event.proto).
SESSIONS, EVENTS = 1, 2
EVENT_SESSION, ORIGIN, SESSION_OPENED, SESSION_CLOSED, AGENT_STARTED, GAP = 2, 3, 40, 41, 60, 62


def read_batch(frame, session, numbers, told):
    try:
        raw = decompress(frame.payload, frame.raw_len)
    except Exception as error:  # whatever the decompressor raises
        raise Broken("the payload cannot be decompressed") from error
    if len(raw) != frame.raw_len:
        raise Broken("the payload has another length than the header says")
    batch = list(fields(raw))
    sessions = [value for field, value in batch if field == SESSIONS]
    events = [value for field, value in batch if field == EVENTS]
    if len(events) != frame.events:
        raise Broken("the payload has another number of events than the header says")
    own = sessions.index(session) + 1 if session in sessions else None
    for event in map(message, events):
        if ORIGIN in event:
            origin = message(event[ORIGIN])
            first, more = origin.get(3, 0), origin.get(4, 0)
            numbers.records += more + 1
            numbers.add((origin.get(1, 0), origin.get(2, 0)), first, first + more)
        if GAP in event:
            gap = message(event[GAP])
            first, records = gap.get(3, 0), gap.get(4, 0)
            if records:
                numbers.declared += records
                numbers.add((gap.get(1, 0), gap.get(2, 0)), first, first + records - 1)
        if AGENT_STARTED in event and not message(event[AGENT_STARTED]).get(7, 0):
            numbers.restart()
        if own is not None and event.get(EVENT_SESSION, 0) == own:
            for kind in (SESSION_OPENED, SESSION_CLOSED):
                if kind in event:
                    told.setdefault(kind, frame.seq)


# --- Verifying ----------------------------------------------------------------------------------------------------------

CHECKS = ["file", "host-key", "key-chain", "checkpoints", "frames", "chain", "covered", "opening", "closing", "time",
          "content", "complete", "log"]


class Verifier:
    def __init__(self, trusted):
        self.trusted = trusted
        self.checks = {name: dict(name=name, state="unproved", offset=None, frame=None, detail="") for name in CHECKS}
        self.manifest = None
        self.keys, self.births = [], []
        self.statements = 0
        self.claims, self.fitting = {}, None
        self.marks = {}
        self.first = self.last = self.last_hash = self.opening_frame = None
        self.numbers, self.told = None, {}

    def fail(self, name, detail, offset=None, frame=None):
        check = self.checks[name]
        if check["state"] != "failed":
            check.update(state="failed", detail=detail, offset=offset, frame=frame)

    def settle(self, name, state, detail=""):
        check = self.checks[name]
        if check["state"] != "failed":
            check.update(state=state, detail=detail)

    def failed(self, name):
        return self.checks[name]["state"] == "failed"

    def run(self, data):
        steps = {LINK: self.link, CHECKPOINT: self.checkpoint, FRAME: self.frame}
        try:
            for kind, offset, content in sections(data):
                if kind == MANIFEST:
                    self.read_manifest(offset, content)
                elif kind in steps:
                    steps[kind](offset, content)
            self.settle("file", "passed")
        except FileBroken as error:
            self.fail("file", error.args[0], offset=error.args[1])
        self.conclude()
        states = [check["state"] for check in self.checks.values()]
        if "failed" in states:
            verdict = "broken"
        else:
            verdict = "verified" if self.checks["host-key"]["state"] == "passed" else "unanchored"
        return dict(verdict=verdict, checks=list(self.checks.values()), looked_inside=decompress is not None)

    def read_manifest(self, offset, content):
        try:
            claims = json.loads(content.decode())
            if len(content) > 65536 or claims["format"] != 1 or not re.fullmatch("[0-9a-fA-F]{32}", claims["stream"]):
                raise ValueError
            self.manifest = dict(session=uuid.UUID(claims["session"]).bytes, host_id=uuid.UUID(claims["host_id"]).bytes,
                                 stream=bytes.fromhex(claims["stream"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileBroken("the manifest cannot be used", offset) from error

    def link(self, offset, content):
        self.statements += 1
        if self.failed("key-chain"):
            return
        try:
            link = Statement(content)
            if not self.keys:
                self.keys.append(link.host_key)
            epoch = len(self.births)
            if link.kind != 2 or link.host_key != self.keys[0]:
                raise Broken("not a link of this chain of keys")
            if link.epoch != epoch:
                raise Broken(f"the link of epoch {epoch} is due, that of epoch {link.epoch} is there")
            if not link.signed_by(self.keys[-1]):
                raise Broken(f"the link of epoch {epoch} is not signed by its key")
        except Broken as error:
            return self.fail("key-chain", str(error), offset=offset)
        self.keys.append(link.next_key)
        self.births.append(link)
        if link.stream == self.manifest["stream"]:
            self.claim(link, offset)

    def checkpoint(self, offset, content):
        self.statements += 1
        try:
            stated = Statement(content)
            if not self.keys:
                self.keys.append(stated.host_key)
            if stated.kind == 2:
                raise Broken("a link among the checkpoints")
            if stated.host_key != self.keys[0] or stated.host_id != self.manifest["host_id"]:
                raise Broken("a checkpoint of another host")
            if stated.stream != self.manifest["stream"]:
                raise Broken("a checkpoint of another stream")
            if stated.epoch >= len(self.keys):
                raise Broken(f"a checkpoint by the key of epoch {stated.epoch}, which nothing vouches for")
            if not stated.signed_by(self.keys[stated.epoch]):
                raise Broken(f"a checkpoint that is not signed by the key of epoch {stated.epoch}")
        except Broken as error:
            return self.fail("checkpoints", str(error), offset=offset)
        self.claim(stated, offset)
        if stated.session == self.manifest["session"]:
            for bit in (OPENED, CLOSED):
                if stated.reasons & bit:
                    self.marks.setdefault(bit, stated)

    def claim(self, stated, offset):
        if stated.seq > 0 and self.claims.setdefault(stated.seq, stated.hash) != stated.hash:
            self.fail("covered", f"two statements about frame {stated.seq} differ", offset=offset, frame=stated.seq)

    def frame(self, offset, content):
        try:
            frame = Frame(content)
        except Broken as error:
            self.fail("frames", str(error), offset=offset, frame=None if self.last is None else self.last + 1)
            if self.last is not None:
                self.last, self.last_hash = self.last + 1, None
            return
        place = dict(offset=offset, frame=frame.seq)
        if frame.stream != self.manifest["stream"]:
            return self.fail("chain", "a frame of another stream", **place)
        if self.last is None:
            if self.claims.get(frame.seq - 1, frame.prev) != frame.prev:
                self.fail("covered", "the first frame does not continue the one that is signed", **place)
            self.first = frame.seq
        elif frame.seq != self.last + 1:
            self.fail("chain", f"frame {frame.seq} follows frame {self.last}", **place)
        elif self.last_hash not in (None, frame.prev):
            self.fail("chain", f"frame {frame.seq} does not continue the one before", **place)
        claimed = self.claims.get(frame.seq)
        if claimed == frame.hash:
            self.fitting = frame.seq
        elif claimed is not None:
            self.fail("covered", f"frame {frame.seq} is not the one that is signed", **place)
        self.last, self.last_hash = frame.seq, frame.hash
        opening = self.marks.get(OPENED)
        if opening and opening.session_seq == frame.seq and self.opening_frame is None:
            self.opening_frame = frame
        self.look_inside(frame, place)

    def look_inside(self, frame, place):
        if decompress is None:
            return
        if self.numbers is None:
            numbers = [self.marks[bit].numbers if bit in self.marks else {} for bit in (OPENED, CLOSED)]
            self.numbers = Numbers(*numbers)
        try:
            read_batch(frame, self.manifest["session"], self.numbers, self.told)
        except Broken as error:
            self.fail("content", str(error), **place)

    def conclude(self):
        if not self.keys:
            self.fail("host-key", "the file holds no key")
        elif self.keys[0] in self.trusted:
            self.settle("host-key", "passed", self.keys[0].hex())
        elif self.trusted:
            self.fail("host-key", self.keys[0].hex() + " is not trusted")
        else:
            self.settle("host-key", "unproved", self.keys[0].hex() + " was not compared")
        self.settle("key-chain", "passed")
        if self.statements == 0:
            self.fail("checkpoints", "nothing is signed")
        self.settle("checkpoints", "passed")
        self.conclude_frames()
        for name, bit in (("opening", OPENED), ("closing", CLOSED)):
            self.conclude_mark(name, bit)
        if self.checks["opening"]["state"] == "passed":
            self.conclude_time(self.marks[OPENED])
        if decompress is None:
            for name in ("content", "complete"):
                self.settle(name, "unproved", "no zstd decompressor is at hand: nobody looked inside the frames")
        else:
            self.conclude_content()
            self.conclude_complete()
        self.settle("log", "unproved")

    def conclude_frames(self):
        if self.last is None:
            for name in ("frames", "chain", "covered"):
                self.fail(name, "the file holds no frames")
            self.first = self.last = 0
            return
        self.settle("frames", "passed")
        self.settle("chain", "passed")
        if self.fitting != self.last:
            after = self.first if self.fitting is None else self.fitting + 1
            self.fail("covered", f"frames {after} to {self.last} are not signed for", frame=after)
        self.settle("covered", "passed")

    def conclude_mark(self, name, bit):
        mark = self.marks.get(bit)
        if mark is None:
            self.fail(name, "nothing that is signed says so")
        elif mark.session_seq < self.first or mark.seq > self.last:
            self.fail(name, f"it is in frame {mark.session_seq}, and the file does not reach that far", frame=mark.session_seq)
        else:
            self.settle(name, "passed", f"in frame {mark.session_seq}")

    def conclude_time(self, opening):
        if opening.epoch == 0:
            return self.settle("time", "passed")
        frame = self.opening_frame
        if frame is None:
            return
        birth = self.births[opening.epoch - 1]
        if birth.boot_id == frame.boot_id:
            younger = birth.boot_ns - frame.last_boot_ns
        else:
            younger = birth.wall_ns - (frame.last_boot_ns + frame.wall_offset_ns)
        if younger > SLACK_NS:
            return self.fail("time", "the opening is older than the key that signed for it", frame=frame.seq)
        self.settle("time", "passed")

    def conclude_content(self):
        for name, bit, kind in (("opening", OPENED, SESSION_OPENED), ("closing", CLOSED, SESSION_CLOSED)):
            if self.checks[name]["state"] == "passed" and self.told.get(kind) != self.marks[bit].session_seq:
                seq = self.marks[bit].session_seq
                self.fail("content", f"frame {seq} does not hold the {name}", frame=seq)
        self.settle("content", "passed")

    def conclude_complete(self):
        numbers = self.numbers
        if numbers is None:
            return self.settle("complete", "unproved", "no frames")
        numbers.settle(True)
        if numbers.holes:
            (ring, cpu), first, last = numbers.holes[0]
            opening = self.marks.get(OPENED) if self.checks["opening"]["state"] == "passed" else None
            detail = f"records {first} to {last} of ring {ring}, CPU {cpu}, are missing"
            return self.fail("complete", detail, frame=opening.session_seq if opening else None)
        whole = numbers.records and not numbers.declared and numbers.until
        self.settle("complete", "passed" if whole else "unproved", f"{numbers.records} records, {numbers.declared} declared missing")


def main():
    parser = argparse.ArgumentParser(description="Verifies a Breakglass evidence file.")
    parser.add_argument("file")
    parser.add_argument("--host-key", action="append", default=[], type=bytes.fromhex, metavar="HEX")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with open(arguments.file, "rb") as file:
        report = Verifier(arguments.host_key).run(file.read())
    if arguments.json:
        print(json.dumps(report))
    else:
        print(report["verdict"])
        for check in report["checks"]:
            place = ", ".join(f"{what} {check[what]}" for what in ("frame", "offset") if check[what] is not None)
            print(f"  {check['state']:9} {check['name']:12} {check['detail']}{' [' + place + ']' if place else ''}")
    return {"verified": 0, "broken": 1, "unanchored": 6}[report["verdict"]]


if __name__ == "__main__":
    sys.exit(main())
