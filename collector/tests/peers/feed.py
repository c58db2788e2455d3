"""A log built with aics-tlog that asks a witness for cosignatures with the client of aics-witness.

    feed.py key FOLDER                     make the log's key, print its verifier key
    feed.py feed FOLDER URL WITNESS_KEY    grow the log, have it cosigned, try to rewrite it
"""

import hashlib
import sys
import urllib.request
from pathlib import Path

from aics_tlog import (
    Checkpoint, MerkleTree, format_vkey, parse_note, parse_vkey, sign_checkpoint, verify_checkpoint, vkey_from_ed25519,
)
from aics_witness.feeder import WitnessAhead, WitnessClient, WitnessRejected, merge_cosignatures
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ORIGIN = "peer.example/log"


def signed(tree, key, origin=ORIGIN):
    return sign_checkpoint(Checkpoint(origin, tree.size, tree.root()), key, origin).to_bytes()


def refused(status, client, note, proof):
    try:
        client.submit(note, proof)
    except WitnessRejected as refusal:
        assert refusal.status == status, refusal
    else:
        raise AssertionError(f"not refused with {status}")


def feed(key, url, witness):
    log_key = vkey_from_ed25519(ORIGIN, key.public_key())
    witness_key = parse_vkey(witness)
    leaves = [b"entry %d" % n for n in range(700)]
    # Sizes around the ends of tiles, and twice the same.
    for size in [1, 3, 255, 256, 257, 257, 700]:
        tree = MerkleTree(leaves[:size])
        note = signed(tree, key)
        # A client that knows nothing has to be told where the witness stands.
        with WitnessClient(url, witness_key) as client:
            whole = merge_cosignatures(note, client.submit(note, tree.consistency_proof))
        result = verify_checkpoint(parse_note(whole), log_key, [witness_key], 1)
        assert result.ok, (size, result.error)
    served = urllib.request.urlopen(f"{url}/{hashlib.sha256(ORIGIN.encode()).hexdigest()}/checkpoint").read()
    assert verify_checkpoint(parse_note(served), log_key, [witness_key], 1).size == 700

    rewritten = MerkleTree([b"other"] + leaves[1:] + [b"more"])
    with WitnessClient(url, witness_key) as client:
        refused(422, client, signed(rewritten, key), rewritten.consistency_proof)
        same_size = MerkleTree([b"other"] + leaves[1:])
        refused(422, client, signed(same_size, key), same_size.consistency_proof)
        refused(403, client, signed(tree, Ed25519PrivateKey.generate()), tree.consistency_proof)
        refused(404, client, signed(tree, key, "unknown.example/log"), tree.consistency_proof)
        smaller = MerkleTree(leaves[:5])
        try:
            client.submit(signed(smaller, key), smaller.consistency_proof)
        except WitnessAhead as ahead:
            assert ahead.known_size == 700
        else:
            raise AssertionError("a smaller tree was cosigned after a larger one")


def main():
    command, folder = sys.argv[1], Path(sys.argv[2])
    secret = folder / "peer.seed"
    if command == "key":
        key = Ed25519PrivateKey.generate()
        secret.write_bytes(key.private_bytes_raw())
        print(format_vkey(vkey_from_ed25519(ORIGIN, key.public_key())))
    else:
        feed(Ed25519PrivateKey.from_private_bytes(secret.read_bytes()), *sys.argv[3:])
        print("ok")


main()
