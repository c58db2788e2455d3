//! Whether a frame continues its chain: a pure decision, without I/O.

use breakglass_api::frame::{Hash, Header};

use crate::store::{Head, SEQ_MAX};

/// What to do with a frame whose bytes are sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It comes next; store it.
    Append {
        /// Frames that are missing just before it, given up by the agent.
        missing_before: u64,
    },
    /// Its number is not new: whether it is the frame that is held has to be looked up.
    Held,
    /// It does not fit.
    Refuse(Misfit),
}

/// Why a frame does not fit its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Another host owns the stream.
    #[error("this stream belongs to another host")]
    NotThisHost,
    /// Frames in between were not sent.
    #[error("frame {got} was sent, frame {want} has to come first")]
    Missing {
        /// Number of the frame.
        got: u64,
        /// Number that was due.
        want: u64,
    },
    /// The frame before, as the agent knows it, is not the one held here.
    #[error("frame {seq} does not continue the frame held before it")]
    BrokenChain {
        /// Number of the frame.
        seq: u64,
    },
    /// A different frame with this number is held.
    #[error("a different frame {seq} is already held for this stream: its spool was copied or restored")]
    Fork {
        /// Number of the frame.
        seq: u64,
    },
    /// The frame falls into a hole that the agent itself declared.
    #[error("frame {seq} was declared lost earlier and cannot be added now")]
    DeclaredLost {
        /// Number of the frame.
        seq: u64,
    },
    /// A number that cannot be stored.
    #[error("frame number {seq} is above the limit of {SEQ_MAX}")]
    TooFar {
        /// Number of the frame.
        seq: u64,
    },
}

impl Misfit {
    /// The stable word of the protocol.
    pub fn code(self) -> &'static str {
        match self {
            Misfit::NotThisHost => "not-this-host",
            Misfit::Missing { .. } => "missing-frames",
            Misfit::BrokenChain { .. } => "broken-chain",
            Misfit::Fork { .. } | Misfit::DeclaredLost { .. } => "fork",
            Misfit::TooFar { .. } => "bad-frame",
        }
    }
}

/// Judges a frame of `host` against the last one held of its stream. `oldest` is the oldest frame that the agent said it still
/// has: a first frame with that number may leave a hole behind, because nobody can fill it any more.
pub fn judge(head: Option<&Head>, host: i64, oldest: u64, frame: &Header) -> Verdict {
    let seq = frame.seq;
    if head.is_some_and(|head| head.host != host) {
        return Verdict::Refuse(Misfit::NotThisHost);
    }
    if seq > SEQ_MAX {
        return Verdict::Refuse(Misfit::TooFar { seq });
    }
    let (last, last_hash): (u64, Hash) = head.map_or((0, [0; 32]), |head| (head.seq, head.hash));
    if seq <= last {
        return Verdict::Held;
    }
    // Cannot overflow: last < seq <= SEQ_MAX.
    let want = last + 1;
    if seq == want {
        // The first frame of a stream has zeros before it, as Frame::parse made sure.
        return match frame.prev == last_hash {
            true => Verdict::Append { missing_before: 0 },
            false => Verdict::Refuse(Misfit::BrokenChain { seq }),
        };
    }
    match seq == oldest {
        true => Verdict::Append { missing_before: seq - want },
        false => Verdict::Refuse(Misfit::Missing { got: seq, want }),
    }
}

/// Judges a frame whose number is not new by the hash that is held under it, if one is.
pub fn judge_held(held: Option<Hash>, seq: u64, hash: &Hash) -> Result<(), Misfit> {
    match held {
        Some(held) if held == *hash => Ok(()),
        Some(_) => Err(Misfit::Fork { seq }),
        None => Err(Misfit::DeclaredLost { seq }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(seq: u64, prev: Hash) -> Header {
        Header {
            stream_id: [1; 16],
            boot_id: [2; 16],
            seq,
            prev,
            first_boot_ns: 0,
            last_boot_ns: 0,
            wall_offset_ns: 0,
            events: 0,
        }
    }

    const HEAD: Head = Head { host: 1, seq: 7, hash: [7; 32] };

    #[test]
    fn the_next_frame_must_name_the_one_before() {
        assert_eq!(judge(Some(&HEAD), 1, 0, &header(8, [7; 32])), Verdict::Append { missing_before: 0 });
        let broken = Verdict::Refuse(Misfit::BrokenChain { seq: 8 });
        assert_eq!(judge(Some(&HEAD), 1, 8, &header(8, [9; 32])), broken);
        assert_eq!(judge(None, 1, 1, &header(1, [0; 32])), Verdict::Append { missing_before: 0 });
    }

    #[test]
    fn a_hole_is_taken_only_where_the_agent_declared_it() {
        let missing = Verdict::Refuse(Misfit::Missing { got: 10, want: 8 });
        assert_eq!(judge(Some(&HEAD), 1, 0, &header(10, [9; 32])), missing);
        assert_eq!(judge(Some(&HEAD), 1, 9, &header(10, [9; 32])), missing);
        assert_eq!(judge(Some(&HEAD), 1, 10, &header(10, [9; 32])), Verdict::Append { missing_before: 2 });
        assert_eq!(judge(None, 1, 5, &header(5, [9; 32])), Verdict::Append { missing_before: 4 });
    }

    #[test]
    fn another_hosts_stream_is_closed_to_everybody_else() {
        assert_eq!(judge(Some(&HEAD), 2, 0, &header(8, [7; 32])), Verdict::Refuse(Misfit::NotThisHost));
        assert_eq!(judge(Some(&HEAD), 2, 0, &header(3, [7; 32])), Verdict::Refuse(Misfit::NotThisHost));
    }

    #[test]
    fn a_frame_sent_again_is_told_from_a_fork() {
        assert_eq!(judge(Some(&HEAD), 1, 0, &header(7, [6; 32])), Verdict::Held);
        assert_eq!(judge_held(Some([7; 32]), 7, &[7; 32]), Ok(()));
        assert_eq!(judge_held(Some([7; 32]), 7, &[8; 32]), Err(Misfit::Fork { seq: 7 }));
        assert_eq!(judge_held(None, 4, &[8; 32]), Err(Misfit::DeclaredLost { seq: 4 }));
    }

    proptest! {
        #[test]
        fn no_number_is_too_absurd(last in 0u64..=SEQ_MAX, seq in 1u64.., oldest: u64) {
            let head = Head { seq: last, ..HEAD };
            if let Verdict::Append { missing_before } = judge(Some(&head), 1, oldest, &header(seq, [7; 32])) {
                prop_assert_eq!(seq, last + 1 + missing_before);
            }
        }
    }
}
