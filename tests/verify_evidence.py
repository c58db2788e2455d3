#!/usr/bin/env python3
"""Verifies an evidence file. Written from docs/EVIDENCE.md alone, with nothing but Python's standard library.

Signatures and proofs are in evidence_proofs.py.

What lies inside the frames can only be looked at where a zstd decompressor is at hand (Python 3.14, the package zstandard, or the C
library); without one the checks `content` and `complete` stay unproved, and everything that is signed is checked all the same.

    verify_evidence.py FILE [--host-key HEX]... [--log-key KEY]... [--witness-key KEY]... [--quorum N] [--since NOTE]
                       [--reviewers FILE] [--json]

Ends with 0 if the file is verified, 1 if it is broken, 6 if it is sound but no host key was given.
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
import struct
import sys
import uuid

from evidence_proofs import (
    Broken, LogCheckpoint, NoteKey, Review, continues, hashes_of, is_included, read_reviewers, signature_fits,
)

# Where dictionary N lies as N.zdict, and the SHA-256 of each ("Frame" in docs/EVIDENCE.md).
DICTIONARIES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../collector/api/src/dictionaries")
DICTIONARY_HASHES = {
    1: "be14693372fdcb280c9542827c61b8e2d7ad9688d8c6e8c14ae3c474fb8ff3c5",
    2: "6b76449b040489cd8972fe649f86d8aac80c3c3035c77ee179471f9c14323b4e",
}


def dictionary(number):
    with open(os.path.join(DICTIONARIES, f"{number}.zdict"), "rb") as file:
        content = file.read()
    if hashlib.sha256(content).hexdigest() != DICTIONARY_HASHES[number]:
        raise ValueError(f"dictionary {number} is not the documented one")
    return content


try:
    import zstandard

    def decompress(payload, size, number):
        known = zstandard.ZstdCompressionDict(dictionary(number)) if number else None
        return zstandard.ZstdDecompressor(dict_data=known).decompress(payload, max_output_size=max(size, 1))

except ImportError:
    try:
        from compression import zstd

        def decompress(payload, size, number):
            return zstd.decompress(payload, zstd_dict=zstd.ZstdDict(dictionary(number)) if number else None)

    except ImportError:
        try:
            libzstd = ctypes.CDLL("libzstd.so.1")
            libzstd.ZSTD_createDCtx.restype = ctypes.c_void_p
            libzstd.ZSTD_decompress_usingDict.restype = ctypes.c_size_t
            libzstd.ZSTD_decompress_usingDict.argtypes = [
                ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t,
                ctypes.c_char_p, ctypes.c_size_t,
            ]
            CONTEXT = libzstd.ZSTD_createDCtx()

            def decompress(payload, size, number):
                known = dictionary(number) if number else b""
                raw = ctypes.create_string_buffer(max(size, 1))
                length = libzstd.ZSTD_decompress_usingDict(CONTEXT, raw, size, payload, len(payload), known, len(known))
                # An error is a number that no content can have.
                if length > size:
                    raise ValueError("not what the header says")
                return raw.raw[:length]

        except OSError:
            decompress = None

# --- The parts of a file ------------------------------------------------------------------------------------------------

MANIFEST, LINK, CHECKPOINT, FRAME, END = 1, 2, 3, 4, 0xFFFFFFFF
REVIEWED, LOG, INCLUSION, CONSISTENCY = 16, 17, 18, 19
RAW_MAX, PAYLOAD_MAX = 33_554_432, 33_817_600
RUN_FRAMES, RUN_RAW_MAX, RUN_PAYLOAD_MAX, RUN_BLOCKS_MAX = 16, 262_144, 524_288, 64
RUN_BEGIN = b"\x28\xb5\x2f\xfd\x00\x40"
SECTION_MAX = PAYLOAD_MAX + 152
OPENED, CLOSED = 2, 4
SLACK_NS = 120_000_000_000


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
        (codec, self.dictionary, self.place, zero, self.stream, self.boot_id, self.seq, self.prev, _, self.last_boot_ns, self.wall_offset_ns,
         self.events, self.raw_len, length, tail) = struct.unpack_from("<BBBB16s16sQ32sQQqIII4s", data, 4)
        if length > PAYLOAD_MAX or len(data) != 120 + length + 32:
            raise Broken("the length of the frame is wrong")
        self.is_thin, self.in_run = codec in (3, 4), codec == 4
        known = self.dictionary == 0 if codec == 1 else codec in (2, 3, 4) and self.dictionary in DICTIONARY_HASHES
        if self.place >= (RUN_FRAMES if self.in_run else 1):
            raise Broken("a place in a run that no frame has")
        if self.in_run and (self.raw_len > RUN_RAW_MAX or length > RUN_PAYLOAD_MAX):
            raise Broken("the frame is too large for a run")
        if not known or zero or tail != bytes(4) or self.raw_len > RAW_MAX:
            raise Broken("the header of the frame is wrong")
        self.payload, self.hash = data[120:-32], data[-32:]
        if hashlib.sha256(b"breakglass-frame-v1\0" + data[:-32]).digest() != self.hash:
            raise Broken("the hash of the frame does not fit its content")
        if self.seq <= self.place or (self.seq == 1) != (self.prev == bytes(32)):
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


# Fields of Batch, Event and the kinds of events that matter here (collector/api/proto).
SESSIONS, EVENTS = 1, 2
EVENT_SESSION, ORIGIN, SESSION_OPENED, SESSION_CLOSED, SESSION_EXTENDED, AGENT_STARTED, GAP = 2, 3, 40, 41, 48, 60, 62
OPERATOR, OPERATOR_KEY = 1, 2


def check_blocks(payload, place):
    """Whole blocks, none of them the last, behind the beginning of a zstd frame where the run begins."""
    if place == 0 and not payload.startswith(RUN_BEGIN):
        raise Broken("a run's payload does not begin as one")
    at, blocks = len(RUN_BEGIN) if place == 0 else 0, 0
    while at < len(payload):
        header = int.from_bytes(payload[at:at + 3], "little")
        kind, size = header >> 1 & 3, header >> 3
        at, blocks = at + 3 + (1 if kind == 1 else size), blocks + 1
        if at > len(payload) or header & 1 or kind == 3:
            raise Broken("a run's payload is not whole blocks")
    if not 1 <= blocks <= RUN_BLOCKS_MAX:
        raise Broken("a run's payload has no block, or too many")


class Payloads:
    """Decompresses payloads, those of a run with those before them."""

    def __init__(self):
        self.before, self.payload, self.raw_len = None, b"", 0

    def raw(self, frame):
        before, self.before = self.before, None
        if not frame.in_run:
            return self.whole(frame.payload, frame.raw_len, frame.dictionary)
        if frame.place == 0:
            self.payload, self.raw_len = b"", 0
        elif before is None or (before.place + 1, before.seq + 1, before.hash, before.stream, before.dictionary) != (
            frame.place, frame.seq, frame.prev, frame.stream, frame.dictionary,
        ):
            raise Broken("the frame continues a run that is not there")
        check_blocks(frame.payload, frame.place)
        self.payload += frame.payload
        self.raw_len += frame.raw_len
        if self.raw_len > RUN_RAW_MAX or len(self.payload) > RUN_PAYLOAD_MAX:
            raise Broken("the run is too large")
        self.before = frame
        # An empty last block makes a whole zstd frame of it.
        raw = self.whole(self.payload + b"\1\0\0", self.raw_len, frame.dictionary)
        return raw[len(raw) - frame.raw_len:]

    def whole(self, payload, raw_len, dictionary):
        try:
            raw = decompress(payload, raw_len, dictionary)
        except Exception as error:  # whatever the decompressor raises
            raise Broken("the payload cannot be decompressed") from error
        if len(raw) != raw_len:
            raise Broken("the payload has another length than the header says")
        return raw


def who(body):
    fields_of = message(body)
    return tuple(fields_of.get(field, b"").decode(errors="replace") for field in (OPERATOR, OPERATOR_KEY))


def read_batch(frame, raw, session, numbers, told):
    batch = list(fields(raw))
    sessions = [value for field, value in batch if field == SESSIONS]
    events = [value for field, value in batch if field == EVENTS]
    if len(events) != frame.events:
        raise Broken("the payload has another number of events than the header says")
    own = sessions.index(session) + 1 if session in sessions else None
    following = {}
    for event in map(message, events):
        if ORIGIN in event:
            origin = message(event[ORIGIN])
            first, more = origin.get(3, 0), origin.get(4, 0)
            if frame.is_thin:
                lane = origin.get(1, 0), origin.get(2, 0)
                first = (first + following.get(lane, 0)) % 2**64
                following[lane] = (first + more + 1) % 2**64
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
            if SESSION_OPENED in event:
                told.setdefault("operator", who(event[SESSION_OPENED]))
            if SESSION_EXTENDED in event:
                told.setdefault("joined", set()).add(who(event[SESSION_EXTENDED]))


# --- Verifying ----------------------------------------------------------------------------------------------------------

CHECKS = ["file", "host-key", "key-chain", "checkpoints", "frames", "chain", "covered", "opening", "closing", "time",
          "content", "complete", "log", "witnesses", "consistency", "review"]


class Trust:
    def __init__(self, hosts=(), logs=(), witnesses=(), quorum=None, earlier=None, reviewers=None):
        self.hosts, self.logs = hosts, [NoteKey(text) for text in logs]
        self.witnesses = list({key.text: key for key in map(NoteKey, witnesses)}.values())
        self.quorum = len(self.witnesses) if quorum is None else quorum
        self.earlier = LogCheckpoint(earlier) if earlier is not None else None
        self.reviewers = read_reviewers(reviewers) if reviewers is not None else None
        if self.earlier and not any(self.earlier.of_log(key) for key in self.logs):
            raise SystemExit("the earlier checkpoint is not signed by a log that is trusted")


class Verifier:
    def __init__(self, trust):
        self.trust = trust
        self.logged, self.note, self.consistencies = {}, None, []
        self.reviews, self.seen = [], []
        self.checks = {name: dict(name=name, state="unproved", offset=None, frame=None, detail="") for name in CHECKS}
        self.manifest = None
        self.keys, self.births = [], []
        self.statements = 0
        self.claims, self.fitting = {}, None
        self.marks = {}
        self.first = self.last = self.last_hash = self.opening_frame = None
        self.numbers, self.told, self.payloads = None, {}, Payloads()

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
        steps = {LINK: self.link, CHECKPOINT: self.checkpoint, FRAME: self.frame, REVIEWED: self.review, LOG: self.log,
                 INCLUSION: self.inclusion, CONSISTENCY: self.consistency}
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
        leaf = hashlib.sha256(b"\0" + content).digest()
        self.logged.setdefault(leaf, dict(offset=offset, frame=stated.seq, proved=False))
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
            read_batch(frame, self.payloads.raw(frame), self.manifest["session"], self.numbers, self.told)
        except Broken as error:
            self.fail("content", str(error), **place)

    def review(self, offset, content):
        if len(self.reviews) >= 64:
            return self.fail("review", "too many reviews", offset=offset)
        self.reviews.append((offset, content))

    def log(self, offset, content):
        if self.note is not None:
            return self.fail("log", "a second checkpoint of a log", offset=offset)
        try:
            note = LogCheckpoint(content)
        except Broken as error:
            return self.fail("log", str(error), offset=offset)
        self.note, self.note_offset = note, offset
        self.note_trusted = any(note.of_log(key) for key in self.trust.logs)
        if self.trust.logs and not self.note_trusted:
            self.fail("log", "the log's checkpoint is not signed by a log that is trusted", offset=offset)

    def inclusion(self, offset, content):
        if self.note is None:
            return self.fail("log", "a proof without a checkpoint", offset=offset)
        try:
            leaf, index = content[:32], int.from_bytes(content[32:40], "little")
            path = hashes_of(content[40:])
            if len(content) < 40:
                raise Broken("the length of a proof is wrong")
        except Broken as error:
            return self.fail("log", str(error), offset=offset)
        logged = self.logged.get(leaf)
        if not is_included(leaf, index, path, self.note.size, self.note.root):
            frame = logged["frame"] if logged else None
            return self.fail("log", f"leaf {index} is not proved to be in the log", offset=offset, frame=frame)
        if logged:
            logged["proved"] = True

    def consistency(self, offset, content):
        if self.note is None:
            return self.fail("consistency", "a proof without a checkpoint", offset=offset)
        try:
            size, root, path = int.from_bytes(content[:8], "little"), content[8:40], hashes_of(content[40:])
            if len(content) < 40 or len(self.consistencies) >= 1024:
                raise Broken("the length of a proof is wrong")
        except Broken as error:
            return self.fail("consistency", str(error), offset=offset)
        if not continues(size, root, path, self.note.size, self.note.root):
            return self.fail("consistency", f"the log is not proved to continue its {size} leaves", offset=offset)
        self.consistencies.append((size, root))

    def conclude_review(self):
        best = None
        for offset, content in self.reviews:
            try:
                review = Review(content)
                self.check_review(review)
            except Broken as error:
                return self.fail("review", str(error), offset=offset)
            if review.log:
                self.seen.append((offset, review.log))
            best = max(best or 0, review.frame)
        whole = best is not None and self.trust.reviewers is not None and best >= self.last
        self.settle("review", "passed" if whole else "unproved")

    def check_review(self, review):
        if review.ids != [self.manifest[name] for name in ("session", "host_id", "stream")]:
            raise Broken("a review of another session")
        if self.trust.reviewers is not None and (review.reviewer, review.key) not in self.trust.reviewers:
            raise Broken("a review by a key that is not that reviewer's")
        for operator, operator_key in {self.told.get("operator", ("", "")), *self.told.get("joined", ())}:
            if review.reviewer == operator or review.fingerprint() == operator_key:
                raise Broken("a review by an operator of the session")
        hash = self.claims.get(review.frame, self.last_hash if review.frame == self.last else None)
        if hash != review.hash:
            raise Broken("a review of other frames")

    def conclude_log(self):
        trusting = bool(self.trust.logs)
        if self.note is None:
            if trusting:
                return self.fail("log", "nothing of a log is in the file")
            return self.settle("log", "unproved")
        missing = [leaf for leaf in self.logged.values() if not leaf["proved"]]
        if not self.note_trusted or not self.logged:
            return self.settle("log", "unproved")
        if missing:
            first = min(missing, key=lambda leaf: leaf["offset"])
            detail = f"the checkpoint about frame {first['frame']} is not proved to be in the log"
            return self.fail("log", detail, offset=first["offset"], frame=first["frame"])
        self.settle("log", "passed", f"{self.note.origin}, {self.note.size} leaves")

    def conclude_witnesses(self):
        if not self.trust.witnesses:
            return self.settle("witnesses", "unproved")
        if self.note is None:
            return self.fail("witnesses", "nothing of a log is in the file")
        count = sum(self.note.signed_by(key) for key in self.trust.witnesses)
        if count < self.trust.quorum:
            return self.fail("witnesses", f"{count} cosigned, {self.trust.quorum} are needed", offset=self.note_offset)
        self.settle("witnesses", "passed", f"{count} cosigned")

    def continues(self, size, root):
        """True, False, or None where the file does not say."""
        if size >= self.note.size:
            return size == self.note.size and root == self.note.root
        roots = [other for known, other in self.consistencies if known == size]
        return root in roots if roots else None

    def conclude_consistency(self):
        if self.note is None:
            return self.settle("consistency", "unproved")
        for offset, (origin, size, root) in self.seen:
            if origin == self.note.origin and self.continues(size, root) is False:
                return self.fail("consistency", "a reviewer was shown another log", offset=offset)
        earlier = self.trust.earlier
        if earlier is None:
            return self.settle("consistency", "unproved")
        found = earlier.origin == self.note.origin and self.continues(earlier.size, earlier.root)
        if found:
            self.settle("consistency", "passed")
        elif earlier.origin == self.note.origin and earlier.size > self.note.size:
            self.settle("consistency", "unproved", "the file is older")
        else:
            self.fail("consistency", "the log is not proved to continue your checkpoint", offset=self.note_offset)

    def conclude(self):
        if not self.keys:
            self.fail("host-key", "the file holds no key")
        elif self.keys[0] in self.trust.hosts:
            self.settle("host-key", "passed", self.keys[0].hex())
        elif self.trust.hosts:
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
        if self.manifest is not None:
            self.conclude_review()
        self.conclude_log()
        self.conclude_witnesses()
        self.conclude_consistency()

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


def read_file(name):
    if name is None:
        return None
    with open(name, "rb") as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser(description="Verifies a Breakglass evidence file.")
    parser.add_argument("file")
    parser.add_argument("--host-key", action="append", default=[], type=bytes.fromhex, metavar="HEX")
    parser.add_argument("--log-key", action="append", default=[], metavar="KEY")
    parser.add_argument("--witness-key", action="append", default=[], metavar="KEY")
    parser.add_argument("--quorum", type=int, metavar="N")
    parser.add_argument("--since", metavar="FILE")
    parser.add_argument("--reviewers", metavar="FILE")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    earlier, reviewers = read_file(arguments.since), read_file(arguments.reviewers)
    trust = Trust(arguments.host_key, arguments.log_key, arguments.witness_key, arguments.quorum, earlier,
                  reviewers.decode() if reviewers is not None else None)
    report = Verifier(trust).run(read_file(arguments.file))
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
